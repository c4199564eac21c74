//! Captioned clips for training.
