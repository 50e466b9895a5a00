//! What a new version may do that the one before could not. A *gain* is one such thing. Pure: two sets of powers in, gains
//! out. Limits are no powers: a version with more memory touches nothing else.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use lockgate_config::model::{FilterVersion, FunctionVersion};
use lockgate_host::{Grants, OutboundGrant};
use serde::{Deserialize, Serialize};

use crate::control::facts::grants;

/// What a version may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Powers {
    /// Its grants.
    pub grants: Grants,
    /// Names of its variables. Their values are its settings; that it gets to see one is a power.
    #[serde(default)]
    pub vars: BTreeSet<String>,
}

impl Powers {
    /// Returns what a version of a filter may touch.
    pub fn of_filter(version: &FilterVersion) -> Self {
        Self { grants: grants(&version.grants), vars: BTreeSet::new() }
    }

    /// Returns what a version of a function may touch.
    pub fn of_function(version: &FunctionVersion) -> Self {
        let vars = version.vars.iter().map(|(name, _)| name.clone()).collect();
        Self { grants: grants(&version.grants), vars }
    }
}

/// One thing that a version may do and another may not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gain {
    /// Send requests.
    Send {
        /// The method; none for all.
        method: Option<String>,
        /// Where to: `https://*.example.com:443`.
        to: String,
    },
    /// Reach an address that is not public.
    Reach {
        /// By which place.
        to: String,
        /// The network.
        network: IpNet,
    },
    /// Read a folder.
    Read(PathBuf),
    /// Write to a folder.
    Write(PathBuf),
    /// Keep keys and values in a space of the store that outlives the process; `default` is its own.
    Keep(String),
    /// See a variable.
    Variable(String),
}

/// In words that go on after "may": `send POST requests to https://api.example.com:443`.
impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send { method: Some(method), to } => write!(f, "send {method} requests to {to}"),
            Self::Send { method: None, to } => write!(f, "send requests of any method to {to}"),
            Self::Reach { to, network } => write!(f, "reach {network} by {to}"),
            Self::Read(folder) => write!(f, "read {}", folder.display()),
            Self::Write(folder) => write!(f, "write to {}", folder.display()),
            Self::Keep(space) if space == "default" => f.write_str("keep keys and values in a space of its own"),
            Self::Keep(space) => write!(f, "keep keys and values in the space {space}"),
            Self::Variable(name) => write!(f, "see the variable {name}"),
        }
    }
}

/// Returns gains in one line.
pub fn in_words(gains: &[Gain]) -> String {
    gains.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns what `new` may do that `old` may not, in order. Grants of each kind are looked at one by one: several old ones
/// that only together cover a new one do not count as covering it.
pub fn gains(old: &Powers, new: &Powers) -> Vec<Gain> {
    // Whoever adds a kind of grant has to say here what it lets a version do.
    let Grants { outbound, upstreams, folders, key_value } = &new.grants;
    let mut gains = BTreeSet::new();
    for grant in outbound {
        sends(&old.grants.outbound, grant, &mut gains);
    }
    for grant in upstreams {
        let to = || format!("the upstream {}", grant.upstream);
        let granted = |method: Option<&str>| {
            let mut known = old.grants.upstreams.iter().filter(|known| known.upstream == grant.upstream);
            known.any(|known| match method {
                Some(method) => known.allows(method),
                None => known.methods.is_empty(),
            })
        };
        for method in methods(&grant.methods).into_iter().filter(|method| !granted(*method)) {
            gains.insert(Gain::Send { method: method.map(str::to_owned), to: to() });
        }
    }
    for folder in folders {
        let covering = || old.grants.folders.iter().filter(|known| folder.path.starts_with(&known.path));
        if folder.write && !covering().any(|known| known.write) {
            gains.insert(Gain::Write(folder.path.clone()));
        }
        if covering().next().is_none() {
            gains.insert(Gain::Read(folder.path.clone()));
        }
    }
    gains.extend(key_value.iter().filter(|space| !old.grants.key_value.contains(space)).cloned().map(Gain::Keep));
    gains.extend(new.vars.difference(&old.vars).cloned().map(Gain::Variable));
    gains.into_iter().collect()
}

/// Returns the methods that a grant names, one by one; none for all of them.
fn methods(named: &[String]) -> Vec<Option<&str>> {
    match named {
        [] => vec![None],
        named => named.iter().map(|method| Some(method.as_str())).collect(),
    }
}

/// Adds what an outbound grant lets through and `old` does not.
fn sends(old: &[OutboundGrant], new: &OutboundGrant, gains: &mut BTreeSet<Gain>) {
    let to = format!("{}://{}:{}", if new.tls { "https" } else { "http" }, new.host, new.port);
    for method in methods(&new.methods) {
        let granting = || {
            old.iter().filter(|grant| grant.contains(new)).filter(|grant| match method {
                Some(method) => grant.allows(method),
                None => grant.methods.is_empty(),
            })
        };
        if granting().next().is_none() {
            gains.insert(Gain::Send { method: method.map(str::to_owned), to: to.clone() });
        }
        for network in new.allowed_addresses() {
            let known = granting().flat_map(OutboundGrant::allowed_addresses).any(|known| known.contains(&network));
            if !known {
                gains.insert(Gain::Reach { to: to.clone(), network });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lockgate_host::{FolderGrant, UpstreamGrant};

    use super::*;

    /// Returns powers from lines such as `GET,POST https://a.example 10.0.0.0/8`, `read /data`, `write /data`,
    /// `keep SPACE`, `var NAME`.
    fn powers(lines: &[&str]) -> Powers {
        let mut powers = Powers::default();
        for line in lines {
            let (what, rest) = line.split_once(' ').unwrap();
            match what {
                "var" => drop(powers.vars.insert(rest.to_owned())),
                "keep" => powers.grants.key_value.push(rest.to_owned()),
                "read" | "write" => {
                    let (path, seen_as) = (rest.into(), "/seen".to_owned());
                    powers.grants.folders.push(FolderGrant { path, seen_as, write: what == "write" });
                }
                methods if rest.starts_with("upstream:") => {
                    let methods = methods.split(',').filter(|it| *it != "any").map(str::to_owned).collect();
                    let upstream = rest["upstream:".len()..].to_owned();
                    powers.grants.upstreams.push(UpstreamGrant { upstream, methods });
                }
                methods => {
                    let mut words = rest.split(' ');
                    let (scheme, host) = words.next().unwrap().split_once("://").unwrap();
                    let (host, port) = host.split_once(':').unwrap_or((host, "443"));
                    powers.grants.outbound.push(OutboundGrant {
                        methods: methods.split(',').filter(|it| *it != "any").map(str::to_owned).collect(),
                        addresses: words.map(|network| network.parse().unwrap()).collect(),
                        ..OutboundGrant::new(scheme == "https", host, port.parse().unwrap())
                    });
                }
            }
        }
        powers
    }

    #[test]
    fn a_gain_is_what_no_old_grant_covers() {
        for (old, new, expected) in [
            (&[][..], &[][..], &[][..]),
            (&["any https://a.example"], &[], &[]),
            (&["any https://a.example"], &["any https://a.example"], &[]),
            (&["keep default"], &["keep default"], &[]),
            (&["keep default"], &["keep visits"], &["keep keys and values in the space visits"]),
            (&[], &["keep default"], &["keep keys and values in a space of its own"]),
            (&[], &["any https://a.example"], &["send requests of any method to https://a.example:443"]),
            (
                &["any https://a.example"],
                &["any http://a.example"],
                &["send requests of any method to http://a.example:443"],
            ),
            (
                &["any https://a.example"],
                &["any https://a.example:1"],
                &["send requests of any method to https://a.example:1"],
            ),
            (&["any https://a.example"], &["GET https://a.example"], &[]),
            (
                &["GET https://a.example"],
                &["any https://a.example"],
                &["send requests of any method to https://a.example:443"],
            ),
            (
                &["GET https://a.example"],
                &["GET,POST https://a.example"],
                &["send POST requests to https://a.example:443"],
            ),
            (
                &["any https://a.b.example"],
                &["any https://*.b.example"],
                &["send requests of any method to https://*.b.example:443"],
            ),
            (&["any https://*.b.example"], &["any https://a.b.example", "GET https://*.c.b.example"], &[]),
            (
                &["any https://a.example"],
                &["any https://a.example 10.0.0.0/8"],
                &["reach 10.0.0.0/8 by https://a.example:443"],
            ),
            (&["any https://a.example 10.0.0.0/8"], &["any https://a.example 10.1.0.0/16"], &[]),
            (
                &["GET https://a.example 10.0.0.0/8", "POST https://a.example"],
                &["POST https://a.example 10.0.0.0/8"],
                &["reach 10.0.0.0/8 by https://a.example:443"],
            ),
            (&["any https://127.0.0.1"], &["any https://127.0.0.1 127.0.0.1/32"], &[]),
            (
                &[],
                &["any https://127.0.0.1"],
                &[
                    "send requests of any method to https://127.0.0.1:443",
                    "reach 127.0.0.1/32 by https://127.0.0.1:443",
                ],
            ),
            (&[], &["GET upstream:users"], &["send GET requests to the upstream users"]),
            (&["GET upstream:users"], &["any upstream:users"], &["send requests of any method to the upstream users"]),
            (&["any upstream:users"], &["GET upstream:users"], &[]),
            (
                &["any upstream:users"],
                &["any upstream:orders"],
                &["send requests of any method to the upstream orders"],
            ),
            (&[], &["read /data"], &["read /data"]),
            (&[], &["write /data"], &["read /data", "write to /data"]),
            (&["read /data"], &["write /data"], &["write to /data"]),
            (&["write /data"], &["read /data"], &[]),
            (&["write /data"], &["write /data/below"], &[]),
            (&["read /data", "write /data/below"], &["write /data"], &["write to /data"]),
            (&["read /data"], &["read /database"], &["read /database"]),
            (&["var A"], &["var A", "var B"], &["see the variable B"]),
            (&["var A", "var B"], &["var A"], &[]),
        ] {
            let came: Vec<_> = gains(&powers(old), &powers(new)).iter().map(ToString::to_string).collect();
            assert_eq!(came, expected, "{old:?} → {new:?}");
        }
    }
}
