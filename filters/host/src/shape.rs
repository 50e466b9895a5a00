//! What a component is made of, read from its bytes alone: how many core instances it will have, which
//! interfaces it names. Nothing is compiled or validated for it, so that it takes no time worth noting.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef, Encoding,
    Instance, Parser, Payload,
};

use crate::error::LoadError;

/// The shape of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Core modules, those of nested components included.
    pub(crate) core_modules: u32,
    /// Core instances that one instance of the component has.
    pub(crate) core_instances: u32,
    /// Names of what it imports.
    pub(crate) imports: Vec<String>,
    /// Names of what it exports.
    pub(crate) exports: Vec<String>,
}

impl Shape {
    /// Reads the shape of a component.
    ///
    /// # Errors
    ///
    /// Whatever is not a component: machine code, a core module, something that does not parse.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, LoadError> {
        if wasmtime::Engine::detect_precompiled(bytes).is_some() {
            return Err(LoadError::Precompiled);
        }
        let invalid = |error: wasmparser::BinaryReaderError| LoadError::Invalid(error.to_string());
        if Parser::is_core_wasm(bytes) {
            let preview1 = Parser::new(0).parse_all(bytes).filter_map(Result::ok).any(|payload| match payload {
                Payload::ImportSection(imports) => imports
                    .into_imports()
                    .filter_map(Result::ok)
                    .any(|import| import.module == "wasi_snapshot_preview1"),
                _ => false,
            });
            return Err(LoadError::CoreModule { preview1 });
        }
        if !Parser::is_component(bytes) {
            return Err(LoadError::Invalid("it does not start like a WebAssembly file".to_owned()));
        }
        let mut scopes = vec![Scope::default()];
        let mut core_modules = 0;
        let mut outermost = Scope::default();
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload.map_err(invalid)?;
            let depth = scopes.len();
            let Some(scope) = scopes.last_mut() else {
                break;
            };
            match payload {
                Payload::Version { encoding: Encoding::Module, .. } => core_modules += 1,
                Payload::ComponentSection { .. } => scopes.push(Scope::default()),
                // Modules end as components do: those are told apart by what began last.
                Payload::End(_) if scope.modules_open > 0 => scope.modules_open -= 1,
                Payload::End(_) => {
                    let ended = scopes.pop().unwrap_or_default();
                    match scopes.last_mut() {
                        Some(parent) => parent.components.push(ended.core_instances),
                        None => outermost = ended,
                    }
                }
                payload => scope.read(payload, depth == 1).map_err(invalid)?,
            }
        }
        let Scope { core_instances, imports, exports, .. } = outermost;
        Ok(Self { core_modules, core_instances, imports, exports })
    }
}

/// A component while it is being read.
#[derive(Default)]
struct Scope {
    core_instances: u32,
    modules_open: u32,
    /// Core instances of each component in the index space. Those that come from elsewhere count as one: what is
    /// aliased from an enclosing component does not occur in what tools make.
    components: Vec<u32>,
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Scope {
    fn read(&mut self, payload: Payload<'_>, outermost: bool) -> Result<(), wasmparser::BinaryReaderError> {
        match payload {
            Payload::ModuleSection { .. } => self.modules_open += 1,
            Payload::InstanceSection(instances) => {
                for instance in instances {
                    if let Instance::Instantiate { .. } = instance? {
                        self.core_instances += 1;
                    }
                }
            }
            Payload::ComponentInstanceSection(instances) => {
                for instance in instances {
                    if let ComponentInstance::Instantiate { component_index, .. } = instance? {
                        let nested = self.components.get(component_index as usize).copied().unwrap_or(1);
                        // Calls between components go through an adapter, a core instance of its own.
                        self.core_instances =
                            self.core_instances.saturating_add(nested).saturating_add(u32::from(nested > 0));
                    }
                }
            }
            Payload::ComponentAliasSection(aliases) => {
                for alias in aliases {
                    match alias? {
                        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. }
                        | ComponentAlias::Outer { kind: ComponentOuterAliasKind::Component, .. } => {
                            self.components.push(1)
                        }
                        _ => {}
                    }
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports {
                    let import = import?;
                    if let ComponentTypeRef::Component(_) = import.ty {
                        self.components.push(1);
                    }
                    if outermost {
                        self.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    if export.kind == ComponentExternalKind::Component {
                        self.components.push(1);
                    }
                    if outermost {
                        self.exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(wat: &str) -> Result<Shape, LoadError> {
        Shape::of(&wat::parse_str(wat).unwrap())
    }

    #[test]
    fn core_instances_are_counted_through_nested_components() {
        let shape = shape(
            r#"(component
                (core module $m (func (export "f")))
                (core instance $i (instantiate $m))
                (core instance (instantiate $m))
                (alias core export $i "f" (core func $f))
                (core instance (export "again" (func $f)))
                (component $nested (core module $n) (core instance (instantiate $n)))
                (instance (instantiate $nested))
                (instance (instantiate $nested))
            )"#,
        )
        .unwrap();
        // Two of its own, and for each of the two nested ones one and an adapter.
        assert_eq!((shape.core_modules, shape.core_instances), (2, 6));
    }

    #[test]
    fn what_is_not_a_component_is_told_apart() {
        assert_eq!(shape("(module)"), Err(LoadError::CoreModule { preview1: false }));
        let preview1 = r#"(module (import "wasi_snapshot_preview1" "fd_write" (func)))"#;
        assert_eq!(shape(preview1), Err(LoadError::CoreModule { preview1: true }));
        assert!(matches!(Shape::of(b"hello"), Err(LoadError::Invalid(_))));
        assert!(matches!(Shape::of(b""), Err(LoadError::Invalid(_))));
        let whole = wat::parse_str("(component (core module))").unwrap();
        assert!(matches!(Shape::of(&whole[..whole.len() - 1]), Err(LoadError::Invalid(_))));
    }
}
