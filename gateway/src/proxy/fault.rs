//! The gateway's own answers. A *fault* is why a request did not get the answer of its target: who caused it, what the
//! client is told, and what operators count. A closed set: an error's text is never a label.

use http::StatusCode;

/// Who caused a fault: what one asks first at night.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client.
    Downstream,
    /// A filter.
    Filter,
    /// The function that is the target.
    Function,
    /// The target.
    Upstream,
    /// Ourselves, or our configuration.
    Gateway,
}

impl Source {
    /// Returns the word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Filter => "filter",
            Self::Function => "function",
            Self::Upstream => "upstream",
            Self::Gateway => "gateway",
        }
    }
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $source:ident $kind:literal $status:literal $text:literal;)*) => {
        /// Why a request did not get the answer of its target.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        impl Fault {
            /// All of them, in the order of their discriminants.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns who caused it.
            pub const fn source(self) -> Source {
                match self { $(Self::$name => Source::$source,)* }
            }

            /// Returns the word for logs and metrics.
            pub const fn kind(self) -> &'static str {
                match self { $(Self::$name => $kind,)* }
            }

            /// Returns the status that the client gets; 0 where nobody is there to get one.
            pub const fn code(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Returns what the client is told. The reason is for the log.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

faults! {
    /// A request target that is none, or that could be read in two ways.
    BadTarget = Downstream "bad_target" 400 "bad request target";
    /// No host, several, or one that is none.
    BadHost = Downstream "bad_host" 400 "bad host";
    /// A request that breaks HTTP.
    BadRequest = Downstream "bad_request" 400 "bad request";
    /// The header is longer than a limit, or has more lines.
    HeaderTooLarge = Downstream "header_too_large" 431 "request header too large";
    /// Nothing came through a tunnel for too long.
    TunnelIdle = Downstream "tunnel_idle" 408 "nothing came for too long";
    /// A drain could wait no longer for a tunnel.
    TunnelCut = Gateway "tunnel_cut" 503 "the gateway ends";
    /// CONNECT: Lockgate is no forward proxy.
    ConnectRefused = Downstream "connect_refused" 405 "method not allowed";
    /// No route takes the request.
    NoRoute = Downstream "no_route" 404 "not found";
    /// A route would, with another method.
    MethodNotAllowed = Downstream "method_not_allowed" 405 "method not allowed";
    /// The folder has no such file.
    NoFile = Downstream "no_file" 404 "not found";
    /// The client has made as many requests as it may for now.
    RateLimited = Downstream "rate_limited" 429 "too many requests";
    /// As many requests of the route are under way as may be.
    RouteOverloaded = Gateway "route_overloaded" 503 "too many requests under way";
    /// As many requests are under way in the gateway as may be.
    GatewayOverloaded = Gateway "gateway_overloaded" 503 "too many requests under way";
    /// The request has had all of the route's time for it.
    RequestTimeout = Gateway "request_timeout" 504 "request took too long";
    /// The body is longer than a limit.
    BodyTooLarge = Downstream "body_too_large" 413 "request body too large";
    /// The body is compressed in a way that is not known here.
    UnknownCoding = Downstream "unknown_coding" 415 "unsupported content coding";
    /// The body did not come in time.
    BodyTimeout = Downstream "body_timeout" 408 "request body did not arrive in time";
    /// The client went away.
    ClientGone = Downstream "client_gone" 0 "";
    /// A filter failed, and its failure mode is not `open`.
    FilterFailed = Filter "filter_failed" 503 "filter unavailable";
    /// A filter could not be started: its instances, or the pool, are used up.
    FilterExhausted = Filter "filter_exhausted" 503 "filter unavailable";
    /// The function that is to answer failed.
    FunctionFailed = Function "function_failed" 503 "function unavailable";
    /// The function could not be started: its instances, or the pool, are used up.
    FunctionExhausted = Function "function_exhausted" 503 "function unavailable";
    /// The upstream has no address, or none that is well.
    NoEndpoint = Upstream "no_endpoint" 503 "no endpoint available";
    /// A limit of the upstream is used up, and as many requests wait as may.
    UpstreamOverloaded = Upstream "overloaded" 503 "upstream overloaded";
    /// The request has waited for room at the upstream, for as long as it may.
    PendingTimeout = Upstream "pending_timeout" 503 "upstream overloaded";
    /// No endpoint could be connected to.
    ConnectFailed = Upstream "connect_failed" 502 "upstream unavailable";
    /// Connecting, writing or waiting for the answer took too long.
    UpstreamTimeout = Upstream "timeout" 504 "upstream timed out";
    /// The connection broke.
    UpstreamClosed = Upstream "closed" 502 "upstream closed the connection";
    /// The answer breaks HTTP.
    UpstreamInvalid = Upstream "invalid_response" 502 "upstream sent an invalid response";
    /// A file of a folder could not be read, or became shorter meanwhile.
    FileUnreadable = Gateway "file_unreadable" 500 "file could not be read";
    /// Something that should not be.
    Internal = Gateway "internal" 500 "internal error";
}

impl Fault {
    /// Returns the status that the client gets.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_a_source_is_its_own() {
        for (index, fault) in Fault::ALL.iter().enumerate() {
            assert_eq!(*fault as usize, index);
            let same = |other: &&Fault| (other.source(), other.kind()) == (fault.source(), fault.kind());
            assert_eq!(Fault::ALL.iter().filter(same).count(), 1, "{fault:?}");
        }
    }
}
