//! The `#[filter]` attribute: it reads which phases an `impl Filter` has and exports exactly those.
//!
//! Its documentation for users is in the crate `lockgate-filter`, which re-exports it.

// The input is one `impl` block whose method names are all that matters: a walk over its tokens is enough, and spares
// every filter the compile time of a parser for the whole language.
use proc_macro::{Delimiter, Group, Ident, Literal, Punct, Spacing, Span, TokenStream, TokenTree};

/// The phases, each an interface of the contract by the same name.
const PHASES: [&str; 4] = ["on_request", "on_request_body", "on_response", "on_response_body"];

/// Makes a component of an `impl Filter for …`: see the documentation of `lockgate-filter`.
#[proc_macro_attribute]
pub fn filter(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let expanded = match arguments.into_iter().next() {
        Some(argument) => Err(Problem::new(argument.span(), "`#[filter]` takes no arguments")),
        None => expand(item.clone()),
    };
    expanded.unwrap_or_else(|problem| {
        // The block is kept, so that the editor still understands it.
        let mut tokens = problem.into_compile_error();
        tokens.extend(item);
        tokens
    })
}

fn expand(item: TokenStream) -> Result<TokenStream, Problem> {
    let mut head: Vec<TokenTree> = item.into_iter().collect();
    let body = match head.pop() {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => group,
        _ => return Err(Problem::new(Span::call_site(), EXPECTED)),
    };
    let filter = filter_type(&head)?;
    let members = Members::read(body.stream());

    let mut stream = body.stream();
    match (members.settings, members.configure) {
        (Some(_), Some(_)) => {}
        (None, Some(_)) => stream.extend(parse("type Settings = ::lockgate_filter::NoSettings;")),
        (Some(span), None) => {
            return Err(Problem::new(span, "`Settings` without a `configure` that reads them"));
        }
        (None, None) => stream.extend(parse(
            "type Settings = ::lockgate_filter::NoSettings;
            fn configure(
                _: ::lockgate_filter::NoSettings,
                _: &::lockgate_filter::Declare,
            ) -> ::core::result::Result<Self, ::std::string::String> {
                ::core::result::Result::Ok(<Self as ::core::default::Default>::default())
            }",
        )),
    }
    if members.phases.is_empty() {
        let message = "a filter has at least one of `on_request`, `on_request_body`, `on_response`, `on_response_body`";
        return Err(Problem::new(body.span(), message));
    }

    let mut block = Group::new(Delimiter::Brace, stream);
    block.set_span(body.span());
    let mut expanded: TokenStream = head.into_iter().collect();
    expanded.extend([TokenTree::Group(block)]);

    let mut exports: TokenStream = filter.into_iter().collect();
    exports.extend([TokenTree::Punct(Punct::new(';', Spacing::Alone))]);
    exports.extend(members.phases.into_iter().map(TokenTree::Ident));
    expanded.extend(parse("::lockgate_filter::__export!"));
    expanded.extend([TokenTree::Group(Group::new(Delimiter::Brace, exports))]);
    Ok(expanded)
}

const EXPECTED: &str = "`#[filter]` goes before `impl Filter for` a type without generics";

/// The tokens of the type in `impl Filter for TYPE`.
fn filter_type(head: &[TokenTree]) -> Result<Vec<TokenTree>, Problem> {
    let place = |word: &str| {
        head.iter().position(|token| matches!(token, TokenTree::Ident(ident) if ident.to_string() == word))
    };
    let (Some(start), Some(end)) = (place("impl"), place("for")) else {
        return Err(Problem::new(Span::call_site(), EXPECTED));
    };
    if let Some(TokenTree::Punct(punct)) = head.get(start + 1)
        && punct.as_char() == '<'
    {
        return Err(Problem::new(punct.span(), EXPECTED));
    }
    Ok(head[end + 1..].to_vec())
}

/// What an `impl` block has, as far as the exports depend on it.
#[derive(Default)]
struct Members {
    settings: Option<Span>,
    configure: Option<Span>,
    phases: Vec<Ident>,
}

impl Members {
    /// Bodies and parameters are groups, so that only the block's own members are met here.
    fn read(stream: TokenStream) -> Self {
        let mut members = Self::default();
        let mut previous = String::new();
        for token in stream {
            let TokenTree::Ident(ident) = &token else {
                previous.clear();
                continue;
            };
            let name = ident.to_string();
            match previous.as_str() {
                "type" if name == "Settings" => members.settings = Some(ident.span()),
                "fn" if name == "configure" => members.configure = Some(ident.span()),
                "fn" if PHASES.contains(&name.as_str()) => members.phases.push(ident.clone()),
                _ => {}
            }
            previous = name;
        }
        members
    }
}

fn parse(text: &str) -> TokenStream {
    text.parse().expect("the text is written above")
}

/// What is wrong with the annotated block, and where.
struct Problem {
    span: Span,
    message: String,
}

impl Problem {
    fn new(span: Span, message: &str) -> Self {
        Self { span, message: message.to_owned() }
    }

    fn into_compile_error(self) -> TokenStream {
        let message = TokenTree::Literal(Literal::string(&self.message));
        let mut tokens = parse("::core::compile_error!");
        tokens.extend([
            TokenTree::Group(Group::new(Delimiter::Parenthesis, message.into())),
            TokenTree::Punct(Punct::new(';', Spacing::Alone)),
        ]);
        tokens
            .into_iter()
            .map(|mut token| {
                token.set_span(self.span);
                token
            })
            .collect()
    }
}
