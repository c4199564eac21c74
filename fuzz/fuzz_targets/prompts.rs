#![no_main]

fuzz::target!("prompts");
