#![no_main]

fuzz::target!("mp4");
