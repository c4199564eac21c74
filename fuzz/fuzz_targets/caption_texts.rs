#![no_main]

fuzz::target!("caption_texts");
