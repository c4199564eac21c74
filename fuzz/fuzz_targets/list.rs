#![no_main]

fuzz::target!("list");
