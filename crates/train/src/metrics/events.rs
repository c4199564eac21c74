//! Writer of TensorBoard's event files.
//!
//! Format: a sequence of TFRecords, each a length (u64), its masked CRC-32C, the message, its
//! masked CRC-32C, all little-endian; a message is a protobuf `Event`. Source: tensorflow/tensorflow,
//! `tensorflow/core/lib/io/record_writer.h`, `tensorflow/core/util/event.proto`,
//! `tensorflow/core/framework/summary.proto`.

use super::MetricsError;
use opensora_files::sync_folder;
use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

const PREFIX: &str = "events.out.tfevents.";

/// Appends scalars to an event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates a new event file in `folder`. It tells TensorBoard that the run starts at
    /// `first_step`, which drops that step and later ones of earlier files.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn create(folder: &Path, first_step: u64) -> Result<Self, MetricsError> {
        let (path, file) = new_file(folder)?;
        let mut writer = Self { path, file };
        writer.event(0, Bytes::default().bytes(3, b"brain.Event:2"))?;
        // SessionLog { status: START }
        writer.event(first_step, Bytes::default().bytes(7, &Bytes::default().varint(1, 1).0))?;
        sync_folder(&writer.path).map_err(MetricsError::io(&writer.path))?;
        Ok(writer)
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends tags and values of a step.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<(), MetricsError> {
        let summary = scalars.iter().fold(Bytes::default(), |summary, (tag, value)| {
            let value = Bytes::default().bytes(1, tag.as_bytes()).float(2, *value as f32);
            summary.bytes(1, &value.0)
        });
        self.event(step, Bytes::default().bytes(5, &summary.0))
    }

    /// Appends an event with the fields `what`.
    fn event(&mut self, step: u64, what: Bytes) -> Result<(), MetricsError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut event = Bytes::default().double(1, now).varint(2, step);
        event.0.extend(what.0);
        self.file.write_all(&record(&event.0)).map_err(MetricsError::io(&self.path))
    }
}

/// Creates a new file. TensorBoard reads the files of a folder in the order of their names, so a
/// new file's name must sort after all others, for any time of the clock.
fn new_file(folder: &Path) -> Result<(PathBuf, File), MetricsError> {
    let mut latest = 0;
    for entry in std::fs::read_dir(folder).map_err(MetricsError::io(folder))? {
        let name = entry.map_err(MetricsError::io(folder))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next());
        latest = latest.max(number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut number = now.max(latest.saturating_add(1));
    loop {
        let path = folder.join(format!("{PREFIX}{number:010}.opensora"));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            // Another process created it first.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(MetricsError::io(&path)(error)),
        }
    }
}

/// Returns the TFRecord of a message.
fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(message);
    record.extend(masked_crc(message).to_le_bytes());
    record
}

/// Returns the checksum of a TFRecord: a rotated CRC, since a CRC of data that has CRCs in it would
/// be weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn raw_varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn varint(self, field: u64, value: u64) -> Self {
        self.raw_varint(field << 3).raw_varint(value)
    }

    fn double(self, field: u64, value: f64) -> Self {
        let mut message = self.raw_varint(field << 3 | 1);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn float(self, field: u64, value: f32) -> Self {
        let mut message = self.raw_varint(field << 3 | 5);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut message = self.raw_varint(field << 3 | 2).raw_varint(value.len() as u64);
        message.0.extend(value);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of a protobuf message: number, and its bits or bytes.
    type Field<'a> = (u64, u64, &'a [u8]);

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
        }
        unreachable!()
    }

    fn fields(mut bytes: &[u8]) -> Vec<Field<'_>> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    fields.push((key >> 3, varint(&mut bytes), &bytes[..0]));
                    continue;
                }
                1 => 8,
                5 => 4,
                2 => varint(&mut bytes) as usize,
                kind => panic!("kind {kind}"),
            };
            let (value, rest) = bytes.split_at(length);
            fields.push((key >> 3, 0, value));
            bytes = rest;
        }
        fields
    }

    /// Returns the messages of TFRecords, whose checksums are verified bit by bit.
    fn messages(mut file: &[u8]) -> Vec<Vec<u8>> {
        let crc = |bytes: &[u8]| {
            let mut crc = u32::MAX;
            for byte in bytes {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                }
            }
            let crc = !crc;
            crc.rotate_right(15).wrapping_add(0xa282_ead8)
        };
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let mut messages = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(word(&file[8..12]), crc(&file[..8]));
            let message = &file[12..12 + length];
            assert_eq!(word(&file[12 + length..16 + length]), crc(message));
            messages.push(message.to_vec());
            file = &file[16 + length..];
        }
        messages
    }

    #[test]
    fn events_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 301).unwrap();
        let tags = [("train/loss".to_string(), 0.75), ("speed/mfu".to_string(), 0.125)];
        writer.scalars(70_000, &tags).unwrap();
        let messages = messages(&std::fs::read(writer.path()).unwrap());
        assert_eq!(messages.len(), 3);

        let version = fields(&messages[0]);
        assert_eq!(version[2], (3, 0, &b"brain.Event:2"[..]));
        let start = fields(&messages[1]);
        assert_eq!((start[1].0, start[1].1), (2, 301));
        assert_eq!(start[2].0, 7);
        assert_eq!(fields(start[2].2), [(1, 1, &[][..])]);

        let event = fields(&messages[2]);
        let time = f64::from_le_bytes(event[0].2.try_into().unwrap());
        assert!(time > 1.7e9, "{time}");
        assert_eq!((event[1].0, event[1].1), (2, 70_000));
        assert_eq!(event[2].0, 5);
        let values: Vec<(String, f32)> = fields(event[2].2)
            .into_iter()
            .map(|(field, _, value)| {
                assert_eq!(field, 1);
                let value = fields(value);
                let tag = String::from_utf8(value[0].2.to_vec()).unwrap();
                (tag, f32::from_le_bytes(value[1].2.try_into().unwrap()))
            })
            .collect();
        assert_eq!(values, [("train/loss".into(), 0.75), ("speed/mfu".into(), 0.125)]);
    }

    #[test]
    fn a_later_file_sorts_after_the_earlier_ones() {
        let folder = tempfile::tempdir().unwrap();
        // A clock that was wrong.
        std::fs::write(folder.path().join(format!("{PREFIX}9000000000.host")), "").unwrap();
        let paths: Vec<PathBuf> = (0..3)
            .map(|_| EventWriter::create(folder.path(), 1).unwrap().path().to_path_buf())
            .collect();
        assert!(paths.is_sorted() && paths[0].to_str().unwrap().contains("9000000001"));
        let error = EventWriter::create(&folder.path().join("none"), 1).unwrap_err();
        assert!(matches!(error, MetricsError::Io { .. }));
    }
}
