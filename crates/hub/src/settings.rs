//! Settings and their environment variables, as in `huggingface_hub`.

use crate::HubError;
use opensora_files::read::{MAX_CONFIG_BYTES, read_text};
use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

/// Default address of the hub.
const ENDPOINT: &str = "https://huggingface.co";

/// An access token. `Debug` does not print the token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Creates an access token; white space around `text` is removed. Returns `None` if nothing is left.
    ///
    /// # Errors
    /// Returns an error if the token has characters other than visible ASCII.
    pub fn new(text: &str) -> Result<Option<Self>, HubError> {
        let text = text.trim();
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            let reason = "the token has white space or characters that are not ASCII".into();
            return Err(HubError::Setting { name: "HF_TOKEN", reason });
        }
        Ok((!text.is_empty()).then(|| Self(text.into())))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Address of the hub, folder of the cache, and the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Folder of the cache and the token.
    pub home: PathBuf,
    /// The cache of repositories.
    pub cache: PathBuf,
    /// Address of the hub, without a trailing slash.
    pub endpoint: String,
    /// Access token.
    pub token: Option<Token>,
    /// Offline mode: read the cache only.
    pub offline: bool,
}

impl Settings {
    /// Reads the environment variables and the token file.
    ///
    /// # Errors
    /// Returns an error if a variable is invalid or the token file cannot be read.
    pub fn from_env() -> Result<Self, HubError> {
        Self::of(&|name| std::env::var_os(name))
    }

    /// Reads variables through `variable`; empty ones count as unset.
    pub(crate) fn of(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let user = variable("HOME").or_else(|| variable("USERPROFILE")).map(PathBuf::from);
        let folder = |name: &'static str| variable(name).map(|path| expand(path, user.as_deref()));
        let home = match (folder("HF_HOME"), folder("XDG_CACHE_HOME"), &user) {
            (Some(home), _, _) => home,
            (None, Some(caches), _) => caches.join("huggingface"),
            (None, None, Some(user)) => user.join(".cache").join("huggingface"),
            (None, None, None) => {
                let reason = "neither it nor HOME is set: name a folder for the cache".into();
                return Err(HubError::Setting { name: "HF_HOME", reason });
            }
        };
        let cache = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .unwrap_or_else(|| home.join("hub"));
        let text = |name: &'static str| match variable(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(HubError::Setting { name, reason: "it is not UTF-8".into() }),
        };
        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim().trim_end_matches('/').to_string();
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            let reason = format!("'{endpoint}' found, expected an address such as {ENDPOINT}");
            return Err(HubError::Setting { name: "HF_ENDPOINT", reason });
        }
        let token = match text("HF_TOKEN")?.or(text("HUGGING_FACE_HUB_TOKEN")?) {
            Some(token) => Token::new(&token)?,
            None => stored_token(&folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")))?,
        };
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .any(|name| variable(name).is_some_and(|value| is_true(&value.to_string_lossy())));
        Ok(Self { home, cache, endpoint, token, offline })
    }
}

/// Returns true for the values that `huggingface_hub` accepts as true.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

/// Replaces a leading `~` by the user's home folder.
fn expand(path: OsString, user: Option<&Path>) -> PathBuf {
    let path = PathBuf::from(path);
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

fn stored_token(path: &Path) -> Result<Option<Token>, HubError> {
    match read_text(path, MAX_CONFIG_BYTES) {
        Ok(text) => Token::new(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HubError::Io { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::of(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn defaults_are_those_of_huggingface_hub() {
        let settings = with(&[("HOME", "/nowhere")]).unwrap();
        assert_eq!(settings.cache, Path::new("/nowhere/.cache/huggingface/hub"));
        assert_eq!(settings.endpoint, "https://huggingface.co");
        assert_eq!((settings.token, settings.offline), (None, false));
        let settings = with(&[("HOME", "/nowhere"), ("XDG_CACHE_HOME", "/c")]).unwrap();
        assert_eq!(settings.cache, Path::new("/c/huggingface/hub"));
        let settings = with(&[("HOME", "/nowhere"), ("HF_HOME", "~/hf")]).unwrap();
        assert_eq!(settings.cache, Path::new("/nowhere/hf/hub"));
        let settings = with(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")]).unwrap();
        assert_eq!(settings.cache, Path::new("/cache"));
    }

    #[test]
    fn tokens_come_from_the_environment_then_from_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let token = |variables: &[(&str, &str)]| with(variables).unwrap().token.unwrap().header();
        assert_eq!(token(&[("HF_HOME", home)]), "Bearer hf_file");
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", " hf_env\n")]), "Bearer hf_env");
        let settings = with(&[("HF_HOME", home), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"), "{settings:?}");
        let error = with(&[("HF_HOME", home), ("HF_TOKEN", "two words")]).unwrap_err();
        assert!(error.to_string().starts_with("HF_TOKEN: "), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let error = with(&[]).unwrap_err().to_string();
        assert!(error.starts_with("HF_HOME: "), "{error}");
        let error = with(&[("HF_HOME", "/h"), ("HF_ENDPOINT", "huggingface.co")]).unwrap_err();
        assert!(error.to_string().contains("'huggingface.co'"), "{error}");
        let settings =
            with(&[("HF_HOME", "/h"), ("HF_ENDPOINT", "http://hub/"), ("HF_HUB_OFFLINE", "yes")]);
        let settings = settings.unwrap();
        assert_eq!((settings.endpoint.as_str(), settings.offline), ("http://hub", true));
        assert!(!with(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }
}
