//! Videos and images.

use super::{Reader, fixtures, text};
use opensora_video::{
    gif, media,
    reader::{Decoder, VideoReader},
};

pub(super) const READERS: &[Reader] = &[
    Reader {
        name: "mp4",
        inputs: 12_000,
        seeds: || {
            fixtures(&[
                "seeds/baseline.mp4",
                "seeds/edit-list.mp4",
                "seeds/fragmented.mp4",
                "seeds/high-b-frames.mp4",
                "seeds/part2.mp4",
                "seeds/rotated.mp4",
                "seeds/variable.mp4",
                "written-by-0.1.0/data/clips/000000.mp4",
            ])
        },
        read: |scratch, bytes| {
            let path = scratch.write("damaged.mp4", bytes);
            for frame in VideoReader::open(&path, Decoder::InProcess).map_err(text)? {
                frame.map_err(text)?;
            }
            Ok(())
        },
    },
    Reader {
        name: "gif",
        inputs: 20_000,
        seeds: || fixtures(&["seeds/animated.gif"]),
        read: |scratch, bytes| {
            gif::read(&scratch.write("damaged.gif", bytes)).map(drop).map_err(text)
        },
    },
    Reader {
        name: "image",
        inputs: 20_000,
        seeds: || {
            fixtures(&[
                "seeds/alpha.png",
                "seeds/baseline.jpg",
                "seeds/lossless.webp",
                "seeds/lossy.webp",
                "seeds/palette.bmp",
                "seeds/palette.png",
                "seeds/plain.bmp",
                "seeds/plain.pgm",
                "seeds/plain.ppm",
                "seeds/sixteen.png",
                "written-by-0.1.0/data/stills/000000.png",
            ])
        },
        // The kind goes by the content.
        read: |scratch, bytes| {
            media::still(&scratch.write("damaged.png", bytes)).map(drop).map_err(text)
        },
    },
];
