#![no_main]

fuzz::target!("image");
