//! Published key names of STDiT, PixArt-alpha, DiT and Latte.
//!
//! They are the reference's attribute names; only its `nn.Sequential`s and the parts that are
//! grouped here differ.

use opensora_checkpoint::{Checkpoint, CheckpointError, KeyMap};

/// Position tables of one resolution, spatial and temporal, stored as buffers: recomputed here, as the
/// reference does.
pub(crate) const POSITION_TABLES: [&str; 2] = ["pos_embed", "pos_embed_temporal"];

/// Position tables of DiT, in its original layout and in the reference's.
const DIT_TABLES: [&str; 3] = ["pos_embed", "pos_embed_spatial", "pos_embed_temporal"];

/// The temporal position table of a Latte in its original layout.
const LATTE_TABLE: &str = "temp_embed";

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

/// Keys of PixArt-alpha with multi-scale conditioning.
pub fn pixart_ms() -> KeyMap {
    map("a PixArt-alpha multi-scale model")
}

/// Keys of DiT: the original files, and the state dicts of the reference's class.
///
/// Deviation: the reference reads `pos_embed_spatial` from its own files; it is recomputed here, to
/// the same values.
pub fn dit() -> KeyMap {
    with_tables("a DiT", &DIT_TABLES)
}

/// Keys of Latte, which are those of DiT but for `temp_embed` in the original file.
pub fn latte() -> KeyMap {
    with_tables("a Latte", &DIT_TABLES).allow_unused(LATTE_TABLE)
}

/// Checks that the file of a Latte is no DiT in its original layout, which fits it otherwise.
///
/// # Errors
/// Returns an error if the file is one.
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

/// Keys of PixArt-alpha for an STDiT to start from: it lacks the temporal attention.
pub fn stdit_from_pixart() -> KeyMap {
    map("a PixArt-alpha model (to start an STDiT from)").allow_missing("blocks.*.attn_temp.*")
}

fn map(artefact: &str) -> KeyMap {
    with_tables(artefact, &POSITION_TABLES)
}

fn with_tables(artefact: &str, tables: &[&str]) -> KeyMap {
    let map = KeyMap::new(artefact).rename(published_key);
    // The patch convolution of image models is 2-D: it gets a depth axis of one.
    let map = map.any_unit_axes("x_embedder.proj.weight");
    tables.iter().fold(map, |map, key| map.allow_unused(*key))
}

fn published_key(path: &str) -> String {
    let path = path.strip_prefix("base.").unwrap_or(path);
    let path = path.strip_prefix("embed.").unwrap_or(path).replace(".base.", ".");
    // The embedders of numbers: `t_embedder`, `csize_embedder`, `ar_embedder`.
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
            // PixArtMS and Latte hold the model that they extend.
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
