//! The mapping from parameters to published keys.

/// Maps a parameter's path in the module (with PyTorch's leaf names) to the published key.
pub type Rename = Box<dyn Fn(&str) -> String + Send + Sync>;

/// The keys of one artefact, kept beside its model.
///
/// A parameter's path, such as `blocks.0.attn.qkv.weight`, is the chain of field names in the
/// module with PyTorch's leaf names (`weight` for burn's `gamma`).
pub struct KeyMap {
    artefact: String,
    rename: Rename,
    allow_unused: Vec<String>,
    allow_missing: Vec<String>,
    any_unit_axes: Vec<String>,
}

impl KeyMap {
    /// Creates a map in which published keys equal the module's paths. `artefact` is its name in
    /// messages.
    pub fn new(artefact: impl Into<String>) -> Self {
        Self {
            artefact: artefact.into(),
            rename: Box::new(str::to_string),
            allow_unused: Vec::new(),
            allow_missing: Vec::new(),
            any_unit_axes: Vec::new(),
        }
    }

    /// Sets the published keys to `rename(path)`.
    pub fn rename(mut self, rename: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        self.rename = Box::new(rename);
        self
    }

    /// Allows keys in the file that the model does not use. `*` matches any text.
    pub fn allow_unused(mut self, pattern: impl Into<String>) -> Self {
        self.allow_unused.push(pattern.into());
        self
    }

    /// Allows keys to be missing in the file; their parameters keep their values. `*` matches any text.
    pub fn allow_missing(mut self, pattern: impl Into<String>) -> Self {
        self.allow_missing.push(pattern.into());
        self
    }

    /// Ignores axes of length one when shapes of these keys are compared, such as for a 2-D
    /// convolution that is loaded into a 3-D one. `*` matches any text.
    pub fn any_unit_axes(mut self, pattern: impl Into<String>) -> Self {
        self.any_unit_axes.push(pattern.into());
        self
    }

    /// Returns the name of the artefact.
    pub fn artefact(&self) -> &str {
        &self.artefact
    }

    /// Returns the published key of a parameter.
    pub fn published_key(&self, path: &str) -> String {
        (self.rename)(path)
    }

    pub(crate) fn may_be_unused(&self, key: &str) -> bool {
        self.allow_unused.iter().any(|pattern| matches(pattern, key))
    }

    pub(crate) fn may_be_missing(&self, key: &str) -> bool {
        self.allow_missing.iter().any(|pattern| matches(pattern, key))
    }

    pub(crate) fn shapes_fit(&self, key: &str, found: &[usize], expected: &[usize]) -> bool {
        let solid = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
        found == expected
            || (self.any_unit_axes.iter().any(|pattern| matches(pattern, key))
                && solid(found) == solid(expected))
    }
}

/// Returns true if `text` matches `pattern`, in which `*` matches any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(mut part) = parts.next() else { return rest.is_empty() };
    for next in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        part = next;
    }
    rest.ends_with(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_any_text() {
        assert!(matches("pos_embed", "pos_embed") && !matches("pos_embed", "pos_embed_temporal"));
        assert!(matches("decoder.*", "decoder.block.0") && !matches("decoder.*", "encoder.block"));
        assert!(matches("*.weight", "a.b.weight") && !matches("*.weight", "a.b.weights"));
        assert!(matches("a.*.c.*.e", "a.b.c.d.e") && !matches("a.*.c.*.e", "a.b.d.e"));
        assert!(matches("*", "") && matches("a**b", "ab") && !matches("ab*ba", "aba"));
        assert!(matches("*ab*b", "xabb") && !matches("*ab*b", "xab"));
    }

    #[test]
    fn only_listed_keys_may_differ_by_unit_axes() {
        let map = KeyMap::new("test").any_unit_axes("conv.*");
        assert!(map.shapes_fit("conv.weight", &[8, 4, 2, 2], &[8, 4, 1, 2, 2]));
        assert!(!map.shapes_fit("conv.weight", &[8, 2, 4, 2], &[8, 4, 1, 2, 2]));
        assert!(!map.shapes_fit("linear.weight", &[8, 4, 1, 1], &[8, 4]));
    }
}
