//! The `#[procpool::task]` attribute. Use it through the `procpool` crate.

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::{Attribute, Error, FnArg, ItemFn, ReturnType, Type, parse_macro_input, parse_quote};

/// Registers a function as a task: it stays an ordinary function and can also be called by name,
/// `module_path!()::name`, by callers that do not run the same image.
///
/// The function takes exactly one argument (several travel as a tuple) and is neither generic, `async`,
/// `unsafe` nor a method. Argument and result are `procpool::Data`.
///
/// ```
/// #[procpool::task]
/// fn double(n: u32) -> u32 {
///     n * 2
/// }
///
/// assert_eq!(double(21), 42);
/// assert!(procpool::tasks().iter().any(|task| task.name.ends_with("::double")));
/// ```
///
/// ```compile_fail
/// #[procpool::task]
/// fn generic<T>(value: T) -> T {
///     value
/// }
/// ```
#[proc_macro_attribute]
pub fn task(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let attribute = proc_macro2::TokenStream::from(attribute);
    let function = parse_macro_input!(item as ItemFn);
    if !attribute.is_empty() {
        return Error::new_spanned(attribute, "#[procpool::task] takes no arguments")
            .to_compile_error()
            .into();
    }
    expand(function).unwrap_or_else(|error| error.to_compile_error()).into()
}

fn expand(mut function: ItemFn) -> Result<proc_macro2::TokenStream, Error> {
    let argument = check(&function)?;
    let name = &function.sig.ident;
    let result: Type = match &function.sig.output {
        ReturnType::Default => parse_quote!(()),
        ReturnType::Type(_, result) => (**result).clone(),
    };
    let signature = format!("fn({}) -> {}", pretty(&argument), pretty(&result));
    let registration = format_ident!("__PROCPOOL_TASK_{}", name.to_string().to_uppercase());
    let name_text = name.to_string();

    // One instance of the function, at one address: an inlined or duplicated copy could not be told by
    // its address, and two functions with equal bodies could be merged into one. The mark differs.
    function.attrs.retain(|attribute| !attribute.path().is_ident("inline"));
    function.attrs.push(parse_quote!(#[inline(never)]));
    function.block.stmts.insert(
        0,
        parse_quote! {
            { ::core::hint::black_box(&raw const #registration); }
        },
    );

    let cfgs: Vec<&Attribute> =
        function.attrs.iter().filter(|a| a.path().is_ident("cfg")).collect();
    Ok(quote! {
        #(#cfgs)*
        #[::procpool::__private::linkme::distributed_slice(::procpool::__private::TASKS)]
        #[linkme(crate = ::procpool::__private::linkme)]
        #[doc(hidden)]
        static #registration: ::procpool::Task = ::procpool::Task::new(
            ::core::concat!(::core::module_path!(), "::", #name_text),
            #signature,
            || ::procpool::__private::functions::<#argument, #result>(#name),
        );
        #function
    })
}

/// The argument's type, if the function can be a task.
fn check(function: &ItemFn) -> Result<Type, Error> {
    let sig = &function.sig;
    if !sig.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &sig.generics,
            "a task cannot be generic: its name stands for one function",
        ));
    }
    if let Some(token) = &sig.asyncness {
        return Err(Error::new_spanned(
            token,
            "a task cannot be async: it runs to its end in a worker",
        ));
    }
    if let Some(token) = &sig.unsafety {
        return Err(Error::new_spanned(
            token,
            "a task cannot be unsafe: anyone may call it by name",
        ));
    }
    if let Some(abi) = &sig.abi {
        return Err(Error::new_spanned(abi, "a task is an ordinary Rust function"));
    }
    let inputs: Vec<&FnArg> = sig.inputs.iter().collect();
    match inputs.as_slice() {
        [FnArg::Typed(argument)] => Ok((*argument.ty).clone()),
        [FnArg::Receiver(receiver)] => {
            Err(Error::new_spanned(receiver, "a task cannot be a method"))
        }
        _ => Err(Error::new_spanned(
            &sig.inputs,
            "a task takes exactly one argument; several travel as a tuple, none as `_: ()`",
        )),
    }
}

/// A type as a person writes it.
fn pretty(ty: &Type) -> String {
    let text = quote!(#ty).to_string();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | ',' | ')' | ']' | ':' | ';' | '?' if out.ends_with(' ') => {
                out.pop();
                out.push(c);
            }
            ' ' if out.ends_with(['<', '(', '[', '&', ':']) => {}
            c => out.push(c),
        }
    }
    out
}
