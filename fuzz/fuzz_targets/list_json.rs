#![no_main]

fuzz::target!("list_json");
