//! The leanest filter: one core module, written by hand, without WASI and without an allocator.

/// Returns a component whose `on-request` reads `user-agent` so many times and continues.
pub(crate) fn component(host_calls: u32) -> Vec<u8> {
    let text = format!(
        r#"(component
  (type $types (instance
    (type $header' (tuple string (list u8)))
    (export "header" (type $header (eq $header')))
    (type $response' (record (field "status" u16) (field "headers" (list $header)) (field "body" (list u8))))
    (export "response" (type $response (eq $response')))
    (type $outcome' (variant (case "continue") (case "respond" $response) (case "fail" string)))
    (export "outcome" (type $outcome (eq $outcome')))))
  (import "lockgate:filter/types@0.1.0" (instance $types (type $types)))
  (alias export $types "outcome" (type $outcome))
  (import "lockgate:filter/request@0.1.0" (instance $request
    (export "header" (func (param "name" string) (result (option (list u8)))))))

  ;; Memory and allocator come first: what is imported from the host needs them.
  (core module $memory
    (memory (export "memory") 1)
    ;; What the host writes goes to the same place each time: it is read before the next call, or never.
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 4096))
  (core instance $m (instantiate $memory))
  (core func $header (canon lower (func $request "header")
    (memory (core memory $m "memory")) (realloc (core func $m "realloc"))))
  (core module $filter
    (import "host" "memory" (memory 1))
    (import "host" "header" (func $header (param i32 i32 i32)))
    (data (i32.const 1024) "user-agent")
    (func (export "on-request") (result i32)
      (local $left i32)
      (local.set $left (i32.const {host_calls}))
      (block $done
        (loop $again
          (br_if $done (i32.eqz (local.get $left)))
          (call $header (i32.const 1024) (i32.const 10) (i32.const 2048))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br $again)))
      ;; The first bytes are zero: `continue`.
      i32.const 0))
  (core instance $f (instantiate $filter
    (with "host" (instance
      (export "memory" (memory $m "memory"))
      (export "header" (func $header))))))
  (func $on-request (result $outcome)
    (canon lift (core func $f "on-request") (memory (core memory $m "memory"))))
  (instance $out (export "on-request" (func $on-request)))
  (export "lockgate:filter/on-request@0.1.0" (instance $out)))"#
    );
    wat::parse_str(text).expect("the component is well-formed")
}
