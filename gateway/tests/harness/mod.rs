//! What every test through the real binary needs: an upstream, a gateway in front of it, and what the two of them say.
//!
//! ```ignore
//! let up = Upstream::start().await;
//! let gateway = Gateway::start(CONFIG, &up).await;
//! assert_eq!(gateway.get("/").await.header("x-tag"), "v1");
//! ```

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file is a crate, and uses a part of it")]

mod gateway;
mod load;
mod reply;
pub mod tls;
mod upstream;

pub use gateway::{Builder, Gateway, Successor};
pub use load::{Load, Tally};
pub use reply::{Reply, Seen};
pub use upstream::{Identity, Upstream};
