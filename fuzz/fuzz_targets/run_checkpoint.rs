#![no_main]

fuzz::target!("run_checkpoint");
