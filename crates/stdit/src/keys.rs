//! Published key names of STDiT, PixArt-alpha, DiT and Latte.
//!
//! They are the reference's attribute names. This crate's paths differ in `nn.Sequential` layers and in groups
//! that the reference does not have.

use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap};

/// Spatial and temporal position tables of one resolution, which are stored as buffers. They are recomputed, as
/// in the reference.
pub(crate) const POSITION_TABLES: [&str; 2] = ["pos_embed", "pos_embed_temporal"];

/// Position tables of DiT, in its original layout and in the reference's layout.
const DIT_TABLES: [&str; 3] = ["pos_embed", "pos_embed_spatial", "pos_embed_temporal"];

/// The temporal position table of a Latte in its original layout.
const LATTE_TABLE: &str = "temp_embed";

/// A key of every model of this crate. In a file, the characters before it are a wrapper's prefix.
const KNOWN_KEY: &str = "x_embedder.proj.weight";

/// Returns the model in `checkpoint` without the wrappers of training programs.
///
/// # Errors
/// Returns an error if the file contains several models and none is known to be the wanted one.
pub fn unwrapped(checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
    checkpoint.unwrapped(KNOWN_KEY)
}

/// Returns the keys of STDiT, in OpenSora-v1 checkpoints and in those of training.
pub fn stdit() -> KeyMap {
    map("an STDiT (Open-Sora 1.0)")
}

/// Returns the keys of PixArt-alpha without multi-scale conditioning.
pub fn pixart() -> KeyMap {
    map("a PixArt-alpha model")
}

/// Returns the keys of PixArt-alpha with multi-scale conditioning.
pub fn pixart_ms() -> KeyMap {
    map("a PixArt-alpha multi-scale model")
}

/// Returns the keys of DiT, in the original files and in state dicts of the reference's class.
///
/// Deviation: the reference reads `pos_embed_spatial` from its files; here it is recomputed, with the same
/// values.
pub fn dit() -> KeyMap {
    with_tables("a DiT", &DIT_TABLES)
}

/// Returns the keys of Latte: those of DiT, and `temp_embed` in the original file.
pub fn latte() -> KeyMap {
    with_tables("a Latte", &DIT_TABLES).allow_unused(LATTE_TABLE)
}

/// Checks that the file of a Latte is not a DiT in its original layout, whose keys and shapes would fit.
///
/// # Errors
/// Returns an error if the file is a DiT.
pub(crate) fn check_no_dit(checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    if checkpoint.contains(DIT_TABLES[0]) && !checkpoint.contains(LATTE_TABLE) {
        let reason = format!(
            "it has '{}' but no '{LATTE_TABLE}', so it is a DiT, expected a Latte",
            DIT_TABLES[0]
        );
        return Err(CheckpointError::format(checkpoint.path(), reason));
    }
    Ok(())
}

/// Returns the keys of a PixArt-alpha from which an STDiT starts; it lacks the temporal attention.
pub fn stdit_from_pixart() -> KeyMap {
    map("a PixArt-alpha model (to start an STDiT from)").allow_missing("blocks.*.attn_temp.*")
}

fn map(artefact: &str) -> KeyMap {
    with_tables(artefact, &POSITION_TABLES)
}

fn with_tables(artefact: &str, tables: &[&str]) -> KeyMap {
    let map = KeyMap::new(artefact).rename(published_key);
    // The patch convolution of image models is 2-D. It gets a depth axis of size 1.
    let map = map.any_unit_axes("x_embedder.proj.weight");
    tables.iter().fold(map, |map, key| map.allow_unused(*key))
}

fn published_key(path: &str) -> String {
    let path = path.strip_prefix("base.").unwrap_or(path);
    let path = path.strip_prefix("embed.").unwrap_or(path).replace(".base.", ".");
    // The embedders of scalars: `t_embedder`, `csize_embedder`, `ar_embedder`.
    let path = ["t", "csize", "ar"].into_iter().fold(path, |path, number| {
        path.replace(&format!("{number}_embedder.fc1."), &format!("{number}_embedder.mlp.0."))
            .replace(&format!("{number}_embedder.fc2."), &format!("{number}_embedder.mlp.2."))
    });
    path.replace("adaln_modulation.", "adaLN_modulation.1.")
        .replace("t_block.", "t_block.1.")
        .replace("y_embedder.fc", "y_embedder.y_proj.fc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_map_to_the_references_names() {
        for (path, key) in [
            ("embed.x_embedder.proj.weight", "x_embedder.proj.weight"),
            ("embed.t_embedder.fc2.bias", "t_embedder.mlp.2.bias"),
            ("embed.t_block.weight", "t_block.1.weight"),
            ("embed.y_embedder.fc1.weight", "y_embedder.y_proj.fc1.weight"),
            ("embed.y_embedder.y_embedding", "y_embedder.y_embedding"),
            ("blocks.3.base.mlp.fc1.weight", "blocks.3.mlp.fc1.weight"),
            ("blocks.3.attn_temp.qkv.bias", "blocks.3.attn_temp.qkv.bias"),
            ("final_layer.scale_shift_table", "final_layer.scale_shift_table"),
            // PixArtMS and Latte contain the model that they extend.
            ("base.embed.t_embedder.fc1.weight", "t_embedder.mlp.0.weight"),
            ("base.blocks.3.cross_attn.proj.bias", "blocks.3.cross_attn.proj.bias"),
            ("csize_embedder.fc1.weight", "csize_embedder.mlp.0.weight"),
            ("ar_embedder.fc2.bias", "ar_embedder.mlp.2.bias"),
            ("base.y_embedder.embedding_table.weight", "y_embedder.embedding_table.weight"),
            ("blocks.0.adaln_modulation.bias", "blocks.0.adaLN_modulation.1.bias"),
            ("final_layer.adaln_modulation.weight", "final_layer.adaLN_modulation.1.weight"),
        ] {
            assert_eq!(published_key(path), key);
        }
    }
}
