#![no_main]

fuzz::target!("gif");
