#![no_main]

fuzz::target!("class_config");
