#![no_main]

fuzz::target!("latent_cache");
