//! `grants` of filters, functions and canaries.

use super::{Names, Resolver, line_of, quoted, repeated};
use crate::decode::did_you_mean;
use crate::file::forms::Either;
use crate::file::{self, OutboundTo};
use crate::model::{FolderGrant, Grants, OutboundGrant, Server, UpstreamGrant};
use crate::problem::Problem;
use crate::tree::Node;

/// Whose grants they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Filter,
    Function,
}

impl Resolver<'_> {
    pub(super) fn grants(&mut self, grants: &file::Grants, node: &Node, of: Of) -> Grants {
        let (outbound, upstreams) = self.outbound(&grants.outbound, node.at("outbound"));
        let key_value: Vec<String> = grants.key_value.0.iter().map(|name| name.0.0.clone()).collect();
        if of == Of::Filter {
            self.check_space(&key_value, node);
        }
        Grants { outbound, upstreams, folders: self.folders(&grants.folders, node, of), key_value }
    }

    fn outbound(&mut self, forms: &[file::OutboundForm], node: &Node) -> (Vec<OutboundGrant>, Vec<UpstreamGrant>) {
        let (mut outbound, mut upstreams) = (Vec::new(), Vec::new());
        for (index, form) in forms.iter().enumerate() {
            let item = node.item(index);
            let (to, methods, addresses) = match form {
                Either::Short(to) => (&to.0, Vec::new(), Vec::new()),
                Either::Long(map) => (
                    &map.to.0,
                    map.methods.0.iter().map(|method| method.0.0.clone()).collect(),
                    map.addresses.0.iter().map(|network| network.0).collect(),
                ),
            };
            match to {
                OutboundTo::Host(grant) => {
                    let grant = OutboundGrant { methods, addresses, ..grant.clone() };
                    self.check_host(&grant, item);
                    outbound.push(grant);
                }
                OutboundTo::Upstream(name) => {
                    if !addresses.is_empty() {
                        let problem =
                            Problem::new("an upstream's addresses are its endpoints", item.key_place("addresses"));
                        self.problem(
                            problem.hint("leave `addresses` out: whoever may reach an upstream reaches those"),
                        );
                    }
                    let to = if matches!(form, Either::Long(_)) { item.at("to") } else { item };
                    if let Some(upstream) = self.find_upstream(name, to) {
                        upstreams.push(UpstreamGrant { name: name.as_str().into(), upstream, methods });
                    }
                }
            }
        }
        (outbound, upstreams)
    }

    fn check_host(&mut self, grant: &OutboundGrant, item: &Node) {
        let within = |domain: &str| grant.host == domain || grant.host.ends_with(&format!(".{domain}"));
        if within("localhost") && grant.addresses.is_empty() {
            let message = format!("no request to `{grant}` would be sent: it leads to a loopback address");
            self.problem(
                Problem::new(message, item.place.clone()).hint(format!(
                    "list the address as well: `{{ to: \"{grant}\", addresses: [127.0.0.0/8, \"::1\"] }}`"
                )),
            );
        }
        if within("upstream") {
            let message = format!("`{grant}` is no host: names below `.upstream` are those of upstreams");
            let name = grant.host.strip_suffix(".upstream").filter(|name| !name.contains('*')).unwrap_or("NAME");
            self.problem(Problem::new(message, item.place.clone()).hint(format!("write `upstream:{name}`")));
        }
    }

    /// Finds the upstream that a grant names.
    fn find_upstream(&mut self, name: &str, node: &Node) -> Option<usize> {
        let Names { names, lost, unsure } = &self.upstreams;
        let found = names.iter().position(|declared| declared == name);
        if found.is_some() || *unsure || lost.iter().any(|lost| lost == name) {
            return found;
        }
        let problem = Problem::new(format!("there is no upstream `{name}`"), node.place.clone());
        let problem = match did_you_mean(name, names.iter().map(String::as_str)) {
            Some(hint) => problem.hint(hint),
            None => problem.label(format!("declared are {}", quoted(names))),
        };
        self.problem(problem);
        None
    }

    fn folders(&mut self, folders: &[file::Folder], node: &Node, of: Of) -> Vec<FolderGrant> {
        if of == Of::Filter && !folders.is_empty() {
            let problem = Problem::new("a filter sees no folders", node.key_place("folders"));
            self.problem(
                problem.hint("what it needs to know, it is told by its `settings`; a function may see folders"),
            );
        }
        let items = node.at("folders");
        let grants: Vec<FolderGrant> = folders
            .iter()
            .enumerate()
            .map(|(index, folder)| FolderGrant {
                path: self.path(&folder.path),
                seen_as: folder.seen_as.0.0.clone(),
                write: folder.write.0,
                place: items.item(index).at("path").place.clone(),
            })
            .collect();
        let seen: Vec<_> = grants.iter().map(|grant| &grant.seen_as).collect();
        for (index, first) in repeated(&seen) {
            let (item, first) = (items.item(index).at("as"), items.item(first).at("as"));
            let problem = Problem::new(format!("two folders are seen as `{}`", seen[index]), item.place.clone())
                .label(format!("the first is `{}`{}", first.place.path, line_of(&first.place)));
            self.problem(problem.hint("give each a path of its own"));
        }
        grants
    }
}

/// Returns whether new versions of a filter or function wait for approval.
pub(super) fn require_approval(written: Option<file::RequireApproval>, server: &Server) -> bool {
    written.map_or(server.require_approval, |written| written == file::RequireApproval::Grants)
}
