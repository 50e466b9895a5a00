//! Key-value stores.

use super::Resolver;
use crate::file;
use crate::file::forms::Either;
use crate::model::KeyValueStore;
use crate::problem::Problem;
use crate::tree::Node;

impl Resolver<'_> {
    /// Returns where the store is that outlives the process.
    pub(super) fn store(&mut self, store: file::StoreForm, node: &Node) -> KeyValueStore {
        let address = match store {
            Either::Short(file::StoreWord::Embedded) => return KeyValueStore::Embedded,
            Either::Long(store) => store.redis.0,
        };
        let begins_with = |scheme: &&str| address.reveal().starts_with(*scheme);
        if !["redis://", "redis+unix://", "unix://"].iter().any(begins_with) {
            let place = node.at("key_value").at("redis").place.clone();
            let problem = Problem::new("this is no address of a Redis server", place);
            let problem = problem.label("expected `redis://HOST:PORT/NUMBER`, or `redis+unix:///PATH`");
            self.problem(if begins_with(&"rediss://") {
                problem.hint("TLS is not spoken to Redis: put a tunnel between the two")
            } else {
                problem
            });
        }
        KeyValueStore::Redis(address)
    }

    /// Checks that a filter gets no more spaces than its contract has names for.
    pub(super) fn check_space(&mut self, spaces: &[String], node: &Node) {
        if spaces.len() > 1 {
            let place = node.at("key_value").place.clone();
            let problem = Problem::new("a filter has one space", place).label("expected one name");
            self.problem(problem.hint("`default` is its own; another name is shared with whoever is granted it"));
        }
    }
}
