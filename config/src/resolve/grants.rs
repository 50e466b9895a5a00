//! `grants` of filters, functions and canaries.

use super::{Resolver, line_of, repeated};
use crate::file;
use crate::file::forms::Either;
use crate::model::{FolderGrant, Grants, OutboundGrant, Server};
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
        Grants {
            outbound: self.outbound(&grants.outbound, node.at("outbound")),
            folders: self.folders(&grants.folders, node, of),
        }
    }

    fn outbound(&mut self, forms: &[file::OutboundForm], node: &Node) -> Vec<OutboundGrant> {
        let grants: Vec<OutboundGrant> = forms
            .iter()
            .map(|form| match form {
                Either::Short(to) => to.0.clone(),
                Either::Long(map) => OutboundGrant {
                    methods: map.methods.0.iter().map(|method| method.0.0.clone()).collect(),
                    addresses: map.addresses.0.iter().map(|network| network.0).collect(),
                    ..map.to.0.clone()
                },
            })
            .collect();
        for (index, grant) in grants.iter().enumerate() {
            let local = grant.host == "localhost" || grant.host.ends_with(".localhost");
            if local && grant.addresses.is_empty() {
                let problem = Problem::new(
                    format!("no request to `{grant}` would be sent: it leads to a loopback address"),
                    node.item(index).place.clone(),
                );
                self.problem(problem.hint(format!(
                    "list the address as well: `{{ to: \"{grant}\", addresses: [127.0.0.0/8, \"::1\"] }}`"
                )));
            }
        }
        grants
    }

    fn folders(&mut self, folders: &[file::Folder], node: &Node, of: Of) -> Vec<FolderGrant> {
        if of == Of::Filter && !folders.is_empty() {
            let problem = Problem::new("a filter sees no folders", node.key_place("folders"));
            self.problem(problem.hint("what it needs to know, it is told by its `settings`; a function may see folders"));
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
