#![no_main]

fuzz::target!("pickle");
