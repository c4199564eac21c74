#![no_main]

fuzz::target!("metrics");
