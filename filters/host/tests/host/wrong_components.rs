//! What is no filter is refused with a sentence that helps, and never instantiated.

use std::sync::Arc;

use lockgate_guests::Guest;
use lockgate_host::{Lane, LoadError};

use crate::{component, host, setup, setup_of};

fn wat(text: &str) -> Arc<[u8]> {
    wat::parse_str(text).expect("a component").into()
}

#[test]
fn each_wrong_component_has_its_sentence() {
    let machine_code = {
        let engine = wasmtime::Engine::default();
        engine.precompile_component(&component(Guest::Tag)).expect("compiles").into()
    };
    let elsewhere = r#"(component (instance $i) (export "lockgate:filter/on-request@0.2.0" (instance $i)))"#;
    let no_configuration_function = r#"(component
        (core module $m (func (export "f"))) (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (instance $e (export "on-request" (func $f)))
        (export "lockgate:filter/on-request@0.1.0" (instance $e)))"#;
    let cases: [(&str, Arc<[u8]>, &str); 10] = [
        ("nothing", Vec::new().into(), "is not a valid component: "),
        ("text", Arc::from(*b"(component)"), "is not a valid component: "),
        ("a core module", component(Guest::CoreModule), "is a core module, not a component; build for wasm32-wasip2"),
        (
            "a preview 1 module",
            wat(r#"(module (import "wasi_snapshot_preview1" "fd_write" (func)))"#),
            "is a core module, not a component; it was built for wasm32-wasip1: build for wasm32-wasip2",
        ),
        (
            "machine code",
            machine_code,
            "is precompiled machine code; give the component (`.wasm`) that it was made from",
        ),
        (
            "another world",
            component(Guest::WrongWorld),
            "exports no interface of `lockgate:filter@0.1`, such as \
            `lockgate:filter/on-request@0.1.0`; it exports `example:elsewhere/arithmetic@1.0.0`",
        ),
        (
            "an empty component",
            wat("(component)"),
            "exports no interface of `lockgate:filter@0.1`, such as \
            `lockgate:filter/on-request@0.1.0`; it exports nothing",
        ),
        (
            "an unknown import",
            component(Guest::UnknownImport),
            "imports what a filter cannot have: `example:nowhere/thing@1.0.0`; \
            there are `lockgate:filter@0.1` and WASI 0.2",
        ),
        (
            "another contract",
            wat(elsewhere),
            "was built for `lockgate:filter/on-request@0.2.0`; this gateway speaks \
            `lockgate:filter@0.1`: rebuild it with the matching SDK",
        ),
        ("a function of another type", wat(no_configuration_function), "cannot be started: "),
    ];
    for (what, component, expected) in cases {
        let text = setup_of(component).refused().to_string();
        assert!(text.starts_with(expected), "{what}: {text}");
    }
}

#[test]
fn no_part_of_a_component_loads() {
    let whole = component(Guest::Bare);
    for cut in [8, 100, whole.len() / 2, whole.len() - 1] {
        let error = setup_of(whole[..cut].into()).refused();
        assert!(matches!(error, LoadError::Invalid(_) | LoadError::NoExports { .. }), "{cut}: {error:?}");
    }
}

#[test]
fn a_response_body_never_waits() {
    let text = r#"(component
        (import "wasi:http/outgoing-handler@0.2.0" (instance))
        (core module $m (func (export "f"))) (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (instance $e (export "on-response-body" (func $f)))
        (export "lockgate:filter/on-response-body@0.1.0" (instance $e)))"#;
    assert_eq!(setup_of(wat(text)).granted("example.com", 80).refused(), LoadError::ResponseBodyWaits);
}

#[test]
fn a_component_may_mix_versions_of_wasi_and_name_what_it_never_calls() {
    let text = r#"(component
        (import "wasi:cli/environment@0.2.0" (instance (export "get-arguments" (func (result (list string))))))
        (import "wasi:cli/environment@0.2.4" (instance
            (export "initial-cwd" (func (result (option string))))
            (export "some-later-function" (func (result string)))))
        (import "wasi:sockets/tcp@0.2.3" (instance (export "tcp-socket" (type (sub resource)))))
        (core module $m (func (export "f"))) (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i "f")))
        (instance $e (export "configure" (func $f)))
        (export "lockgate:filter/on-request@0.1.0" (instance $e)))"#;
    setup_of(wat(text)).load();
}

#[test]
fn too_large_a_need_is_told_at_load() {
    let error =
        setup(Guest::Tag).settings(r#"{"value": "v"}"#).limits(|limits| limits.memory_bytes = 64 << 10).refused();
    let text = error.to_string();
    assert!(text.contains("memory"), "{text}");
    let error = setup(Guest::Tag).limits(|limits| limits.memory_bytes = 1 << 40).refused();
    assert!(
        matches!(&error, LoadError::Limits(text) if text.contains("the most that an instance can have")),
        "{error}"
    );
}

#[test]
fn inspecting_tells_what_a_component_is() {
    let found = host().inspect(&component(Guest::Outbound)).expect("a filter");
    assert!(found.wants_outbound && found.configures && found.phases.on_request);
    assert_eq!((found.lane, found.lane_with_outbound), (Lane::Inline, Lane::Fibre));
    assert_eq!(found.snapshot_hindrance, None);
    assert!(found.need.core_instances > 0 && found.need.memories == 1 && found.memory_bytes_initial > 0);
    assert!(found.imports.iter().any(|import| import.starts_with("wasi:http/")), "{:?}", found.imports);
    assert!(serde_json::to_value(&found).expect("serialises")["need"]["memories"] == 1);
    assert_eq!(host().inspect(b"").expect_err("no filter"), setup_of(Vec::new().into()).refused());
}
