#![no_main]

fuzz::target!("stdit_config");
