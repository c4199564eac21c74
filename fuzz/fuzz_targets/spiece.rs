#![no_main]

fuzz::target!("spiece");
