#![no_main]

fuzz::target!("golden_case");
