#![no_main]

fuzz::target!("latents");
