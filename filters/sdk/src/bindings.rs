//! The generated bindings: one world with all imports, and one world for each interface that a filter may export.
//!
//! A world for each export, so that a component exports what its filter has and nothing else: the gateway calls what
//! it finds. Imports need no such care, since an import that is never called is not in the component.
#![allow(
    missing_debug_implementations,
    unreachable_pub,
    unsafe_code,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    clippy::use_self,
    reason = "generated code"
)]

pub mod imports {
    wit_bindgen::generate!({ path: "../wit", world: "imports", generate_all });
}

pub mod configuration {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "package lockgate:sdk; world configuration { export lockgate:filter/configuration@0.1.0; }",
        pub_export_macro: true,
        export_macro_name: "export_configuration",
    });
}

/// A world that exports one phase.
macro_rules! phase {
    ($module:ident, $export:literal, $wit:literal) => {
        pub mod $module {
            wit_bindgen::generate!({
                path: "../wit",
                inline: $wit,
                with: { "lockgate:filter/types@0.1.0": crate::bindings::imports::lockgate::filter::types },
                pub_export_macro: true,
                export_macro_name: $export,
            });
        }
    };
}

phase!(
    on_request,
    "export_on_request",
    "package lockgate:sdk; world on-request { export lockgate:filter/on-request@0.1.0; }"
);
phase!(
    on_request_body,
    "export_on_request_body",
    "package lockgate:sdk; world on-request-body { export lockgate:filter/on-request-body@0.1.0; }"
);
phase!(
    on_response,
    "export_on_response",
    "package lockgate:sdk; world on-response { export lockgate:filter/on-response@0.1.0; }"
);
phase!(
    on_response_body,
    "export_on_response_body",
    "package lockgate:sdk; world on-response-body { export lockgate:filter/on-response-body@0.1.0; }"
);
