//! Licence terms of known lists and hosts.

use super::address::{Address, Fetch, is_below};
use std::fmt;

/// Licence terms of a list or host, in short, with the address of the full text.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// The list or host.
    pub name: &'static str,
    /// Short summary, which does not replace the terms.
    pub summary: &'static str,
    /// Address of the full text.
    pub url: &'static str,
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.name, self.summary, self.url)
    }
}

/// Terms of Panda-70M. Source: snap-research/Panda-70M, `LICENSE`.
pub(crate) const PANDA_70M: Terms = Terms {
    name: "Panda-70M",
    summary: "non-commercial research only; each video stays under its owner's terms on YouTube",
    url: "https://github.com/snap-research/Panda-70M/blob/main/LICENSE",
};

/// Terms of HD-VG-130M. Source: daooshee/HD-VG-130M, `README.md`, "LICENSE AGREEMENT".
pub(crate) const HD_VG_130M: Terms = Terms {
    name: "HD-VG-130M",
    summary: "academic research only, no distribution; each video stays under its owner's terms \
              on YouTube",
    url: "https://github.com/daooshee/HD-VG-130M#license-agreement",
};

/// Terms of single videos on YouTube.
pub(crate) const YOUTUBE: Terms = Terms {
    name: "YouTube",
    summary: "YouTube's terms of service, and the terms of each video's owner",
    url: "https://www.youtube.com/t/terms",
};

/// Terms of Pexels.
pub(crate) const PEXELS: Terms = Terms {
    name: "Pexels",
    summary: "the Pexels licence: free use with limits",
    url: "https://www.pexels.com/license/",
};

/// Returns the terms of an address's host, for lists without terms; `None` if unknown.
pub(crate) fn of_host(address: &Address) -> Option<&'static Terms> {
    match address.fetch() {
        Fetch::YtDlp => Some(&YOUTUBE),
        Fetch::Direct => is_below(&address.host(), "pexels.com").then_some(&PEXELS),
    }
}
