#![no_main]

fuzz::target!("pipeline_config");
