#![no_main]

fuzz::target!("t5_config");
