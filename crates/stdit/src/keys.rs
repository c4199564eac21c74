//! Published key names of STDiT and PixArt-alpha.
//!
//! They are the reference's attribute names; only its `nn.Sequential`s and the parts that are
//! grouped here differ.

use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap};

/// Position tables of one resolution, spatial and temporal, stored as buffers: recomputed here, as the
/// reference does.
pub(crate) const POSITION_TABLES: [&str; 2] = ["pos_embed", "pos_embed_temporal"];

/// A key of every model here: what stands in front of it in a file is a wrapper.
const KNOWN_KEY: &str = "x_embedder.proj.weight";

/// The model in `checkpoint` without what training programs put around it.
///
/// # Errors
/// Returns an error if several models are in the file and none is known to be the wanted one.
pub fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
    checkpoint.unwrapped(KNOWN_KEY)
}

/// Keys of STDiT: the OpenSora-v1 checkpoints and what training writes.
pub fn stdit() -> KeyMap {
    map("an STDiT (Open-Sora 1.0)")
}

/// Keys of PixArt-alpha without multi-scale conditioning.
pub fn pixart() -> KeyMap {
    map("a PixArt-alpha model")
}

/// Keys of PixArt-alpha for an STDiT to start from: it lacks the temporal attention.
pub fn stdit_from_pixart() -> KeyMap {
    map("a PixArt-alpha model (to start an STDiT from)").allow_missing("blocks.*.attn_temp.*")
}

fn map(artefact: &str) -> KeyMap {
    let map = KeyMap::new(artefact).rename(published_key);
    // PixArt's patch convolution is 2-D: it gets a depth axis of one.
    let map = map.any_unit_axes("x_embedder.proj.weight");
    POSITION_TABLES.iter().fold(map, |map, key| map.allow_unused(*key))
}

fn published_key(path: &str) -> String {
    path.trim_start_matches("embed.")
        .replace(".base.", ".")
        .replace("t_embedder.fc1.", "t_embedder.mlp.0.")
        .replace("t_embedder.fc2.", "t_embedder.mlp.2.")
        .replace("t_block.", "t_block.1.")
        .replace("y_embedder.fc", "y_embedder.y_proj.fc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_the_references_names() {
        for (path, key) in [
            ("embed.x_embedder.proj.weight", "x_embedder.proj.weight"),
            ("embed.t_embedder.fc2.bias", "t_embedder.mlp.2.bias"),
            ("embed.t_block.weight", "t_block.1.weight"),
            ("embed.y_embedder.fc1.weight", "y_embedder.y_proj.fc1.weight"),
            ("embed.y_embedder.y_embedding", "y_embedder.y_embedding"),
            ("blocks.3.base.mlp.fc1.weight", "blocks.3.mlp.fc1.weight"),
            ("blocks.3.attn_temp.qkv.bias", "blocks.3.attn_temp.qkv.bias"),
            ("final_layer.scale_shift_table", "final_layer.scale_shift_table"),
        ] {
            assert_eq!(published_key(path), key);
        }
    }
}
