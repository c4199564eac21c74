//! Configurations of models inside files of this project.

use serde::{
    Deserializer, Serialize,
    de::{Deserialize, DeserializeOwned, Error as _},
};
use serde_json::{Map, Value};

/// Reads a model's configuration and rejects unknown fields, in files of any format, for
/// `#[serde(deserialize_with = "...")]`. The types of configurations accept unknown fields, since published files have them.
///
/// # Errors
/// Returns an error if a field is unknown or its value does not fit.
pub fn known_fields<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Serialize + DeserializeOwned,
    D: Deserializer<'de>,
{
    let given = Map::<String, Value>::deserialize(deserializer)?;
    let known = serde_json::to_value(T::default()).map_err(D::Error::custom)?;
    let Value::Object(known) = known else {
        return Err(D::Error::custom("the configuration is not a table"));
    };
    if let Some(name) = given.keys().find(|name| !known.contains_key(*name)) {
        let names: Vec<String> = known.keys().map(|name| format!("`{name}`")).collect();
        let names = names.join(", ");
        return Err(D::Error::custom(format!("unknown field `{name}`, expected one of {names}")));
    }
    // What JSON has no number for, TOML has: `nan` and `inf`.
    if let Some((name, _)) =
        given.iter().find(|(name, value)| value.is_null() && !known[*name].is_null())
    {
        return Err(D::Error::custom(format!("`{name}` is not a finite number")));
    }
    serde_json::from_value(given.into()).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
    #[serde(default)]
    struct Config {
        depth: usize,
        ratio: f64,
        note: Option<String>,
    }

    fn read(text: &str) -> Result<Config, serde_json::Error> {
        known_fields(&mut serde_json::Deserializer::from_str(text))
    }

    #[test]
    fn known_fields_are_read_and_others_rejected() {
        let config = read(r#"{"depth": 4, "note": "a"}"#).unwrap();
        assert_eq!(config, Config { depth: 4, ratio: 0.0, note: Some("a".into()) });
        let error = read(r#"{"depht": 4}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field `depht`, expected one of `depth`"), "{error}");
        assert!(read(r#"{"depth": "four"}"#).is_err());
        let error = read(r#"{"ratio": null}"#).unwrap_err().to_string();
        assert!(error.contains("`ratio` is not a finite number"), "{error}");
        assert_eq!(read(r#"{"note": null}"#).unwrap(), Config::default());
    }
}
