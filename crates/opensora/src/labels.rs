//! Names of class labels.

use std::collections::BTreeSet;

/// A public list of classes: ImageNet-1k or UCF101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LabelSet {
    /// The 1000 classes of ImageNet-1k.
    ImageNet1k,
    /// The 101 actions of UCF101.
    Ucf101,
}

/// Error for a text that is not a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// No class has this name.
    #[error(
        "no class of {set} is named '{name}'{}; use a class name or a number from 0 to {}",
        hint(near),
        classes - 1
    )]
    Unknown {
        /// The name.
        name: String,
        /// Name of the list that was searched.
        set: &'static str,
        /// Number of classes in the list.
        classes: usize,
        /// Names that contain the given name.
        near: Vec<String>,
    },
    /// Several classes have this name.
    #[error("several classes are named '{name}': give the number, {}", numbers(labels))]
    Ambiguous {
        /// The name.
        name: String,
        /// Labels of these classes.
        labels: Vec<usize>,
    },
    /// A name was given, but the names of the model's classes are not known.
    #[error("label '{name}' is not a number, and the names of the model's classes are not known")]
    NoNames {
        /// The name.
        name: String,
    },
}

fn hint(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (similar: {})", near.join(", ")) }
}

fn numbers(labels: &[usize]) -> String {
    labels.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ")
}

/// Maximum number of similar names in an error.
const MOST_SIMILAR: usize = 5;

impl LabelSet {
    /// Returns the list's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageNet1k => "ImageNet-1k",
            Self::Ucf101 => "UCF101",
        }
    }

    /// Returns the classes in the order of their labels, each with its synonyms separated by commas.
    fn lines(self) -> impl Iterator<Item = &'static str> {
        let text = match self {
            Self::ImageNet1k => include_str!("../data/imagenet-1k.txt"),
            Self::Ucf101 => include_str!("../data/ucf101.txt"),
        };
        text.lines().filter(|line| !line.starts_with('#'))
    }

    /// Returns the number of classes.
    pub fn classes(self) -> usize {
        self.lines().count()
    }

    /// Returns the first name of a label.
    pub fn name_of(self, label: usize) -> Option<&'static str> {
        self.lines().nth(label)?.split(", ").next()
    }

    /// Returns the label of a name; case does not matter.
    ///
    /// # Errors
    /// Returns an error if no class has this name, or several have it.
    pub fn find(self, name: &str) -> Result<usize, LabelError> {
        let wanted = name.trim().to_lowercase();
        let synonyms = |line: &'static str| line.split(", ");
        let labels: Vec<usize> = self
            .lines()
            .enumerate()
            .filter(|&(_, line)| synonyms(line).any(|name| name.to_lowercase() == wanted))
            .map(|(label, _)| label)
            .collect();
        match labels[..] {
            [label] => Ok(label),
            [] => {
                let near: BTreeSet<&str> = self
                    .lines()
                    .flat_map(synonyms)
                    .filter(|name| !wanted.is_empty() && name.to_lowercase().contains(&wanted))
                    .collect();
                Err(LabelError::Unknown {
                    name: name.into(),
                    set: self.name(),
                    classes: self.classes(),
                    near: near.into_iter().take(MOST_SIMILAR).map(String::from).collect(),
                })
            }
            _ => Err(LabelError::Ambiguous { name: name.into(), labels }),
        }
    }
}

/// Parses a label: a number, or a name of `set`. The number's range is not checked.
///
/// # Errors
/// Returns an error if `text` is not a number and not the name of exactly one class.
pub fn parse(text: &str, set: Option<LabelSet>) -> Result<usize, LabelError> {
    match (text.trim().parse(), set) {
        (Ok(label), _) => Ok(label),
        (Err(_), Some(set)) => set.find(text),
        (Err(_), None) => Err(LabelError::NoNames { name: text.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_complete_and_in_order() {
        assert_eq!(LabelSet::ImageNet1k.classes(), 1000);
        assert_eq!(LabelSet::Ucf101.classes(), 101);
        for set in [LabelSet::ImageNet1k, LabelSet::Ucf101] {
            for line in set.lines() {
                assert!(line.split(", ").all(|name| !name.is_empty() && name.trim() == name));
            }
        }
        // The pairs of `assets/texts/imagenet_id.txt` and `imagenet_labels.txt` of Open-Sora v1.0.0.
        let ids = [207, 360, 387, 974, 88];
        let names = ["golden retriever", "otter", "lesser panda", "geyser", "macaw"];
        for (id, name) in ids.into_iter().zip(names) {
            assert_eq!(LabelSet::ImageNet1k.find(name), Ok(id));
            assert_eq!(LabelSet::ImageNet1k.name_of(id), Some(name));
        }
        // The first lines of `ucf101_labels.txt`, whose labels are 0, 1, ...
        let names = ["Apply Eye Makeup", "Apply Lipstick", "Archery", "Baby Crawling"];
        for (label, name) in names.into_iter().enumerate() {
            assert_eq!(LabelSet::Ucf101.name_of(label), Some(name));
        }
        assert_eq!(LabelSet::Ucf101.find("YoYo"), Ok(100));
    }

    #[test]
    fn labels_are_numbers_or_names() {
        let imagenet = Some(LabelSet::ImageNet1k);
        assert_eq!(parse("207", imagenet), Ok(207));
        assert_eq!(parse(" Golden Retriever", imagenet), Ok(207));
        assert_eq!(parse("horse riding", Some(LabelSet::Ucf101)), parse("41", None));
        let error = parse("retriever", imagenet).unwrap_err().to_string();
        assert!(error.contains("similar") && error.contains("golden retriever"), "{error}");
        let error = parse("crane", imagenet).unwrap_err();
        assert_eq!(
            error.to_string(),
            "several classes are named 'crane': give the number, 134 or 517"
        );
        let error = parse("spaceship made of cheese", imagenet).unwrap_err().to_string();
        assert!(error.contains("0 to 999") && !error.contains("similar"), "{error}");
        assert!(matches!(parse("crane", None), Err(LabelError::NoNames { .. })));
        assert!(matches!(parse("-1", imagenet), Err(LabelError::Unknown { .. })));
    }
}
