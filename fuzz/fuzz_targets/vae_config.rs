#![no_main]

fuzz::target!("vae_config");
