#![no_main]

fuzz::target!("tokenizer_json");
