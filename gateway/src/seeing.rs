//! What is told of requests, away from the threads that serve them: the file of the access log, and spans for a collector.
//! The data plane hands over and goes on; what cannot be told is counted.

pub mod collector;
pub mod output;
pub mod spans;
