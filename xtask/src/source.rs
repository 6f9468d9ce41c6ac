//! What the sources of the core may not name: clocks, sockets, files, threads, the environment, randomness.
//!
//! The sources are read as tokens, so comments and strings do not count, and code in macros does. Code under
//! `#[cfg(test)]` is free. The check is a fence against mistakes, not against malice.

use std::path::Path;

use proc_macro2::{Delimiter, Spacing, Span, TokenStream, TokenTree};

use crate::Failure;

/// Modules of `std` that do not exist for the core.
const MODULES: &[&str] = &["env", "fs", "io", "net", "os", "process", "thread"];
/// Names that do not exist for the core, wherever they come from.
const NAMES: &[&str] = &["DefaultHasher", "Instant", "RandomState", "SystemTime", "UNIX_EPOCH"];
/// Collections whose order is random unless they are given a hasher, and how many generic arguments say so.
const HASHED: &[(&str, usize)] = &[("HashMap", 3), ("HashSet", 2)];
/// Functions of those that take or infer the hasher.
const WITH_HASHER: &[&str] = &["default", "with_capacity_and_hasher", "with_hasher"];

/// Checks all Rust files below a folder; returns what is wrong, with file and line.
pub(crate) fn check_folder(folder: &Path) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    let problem = |error: &dyn std::fmt::Display| Failure(format!("cannot read {}: {error}", folder.display()));
    let mut entries =
        std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(|error| problem(&error))?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            wrong.extend(check_folder(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).map_err(|error| problem(&error))?;
            let found = check_text(&text).map_err(|error| Failure(format!("{}: {error}", path.display())))?;
            wrong.extend(found.into_iter().map(|(line, what)| format!("{}:{line}: {what}", path.display())));
        }
    }
    Ok(wrong)
}

/// Checks one text; returns lines and what is wrong there.
fn check_text(text: &str) -> Result<Vec<(usize, String)>, String> {
    let stream: TokenStream = text.parse().map_err(|error| format!("no Rust: {error}"))?;
    let mut found = Vec::new();
    check_stream(stream, &mut found);
    Ok(found)
}

type Found = Vec<(usize, String)>;

fn check_stream(stream: TokenStream, found: &mut Found) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if is_cfg_test(&tokens[at..]) {
            at = after_item(&tokens, at + 2);
        } else if is_word(&tokens[at], "use") && !tokens.get(at + 1).is_some_and(|next| is_punct(next, '<')) {
            let end = tokens[at..].iter().position(|token| is_punct(token, ';')).map_or(tokens.len(), |n| at + n);
            check_use(&mut Vec::new(), &tokens[at + 1..end], found);
            at = end;
        } else if let TokenTree::Group(group) = &tokens[at] {
            check_stream(group.stream(), found);
            at += 1;
        } else if let TokenTree::Ident(_) = &tokens[at] {
            at = check_path(&tokens, at, found);
        } else {
            at += 1;
        }
    }
}

/// `#[cfg(test)]`.
fn is_cfg_test(tokens: &[TokenTree]) -> bool {
    match tokens {
        [hash, TokenTree::Group(group), ..] if is_punct(hash, '#') && group.delimiter() == Delimiter::Bracket => {
            group.stream().to_string().replace(' ', "") == "cfg(test)"
        }
        _ => false,
    }
}

/// The place after the item that starts at `at`.
fn after_item(tokens: &[TokenTree], at: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    };
    tokens[at..].iter().position(ends).map_or(tokens.len(), |n| at + n + 1)
}

/// One tree of a `use`: `a::b::{c, d as e, f::*}`.
fn check_use(prefix: &mut Vec<String>, tokens: &[TokenTree], found: &mut Found) {
    for tree in tokens.split(|token| is_punct(token, ',')) {
        let depth = prefix.len();
        let mut renamed = false;
        let mut span = None;
        for token in tree {
            match token {
                TokenTree::Ident(word) if word == "as" => renamed = true,
                TokenTree::Ident(word) if !renamed => {
                    prefix.push(word.to_string());
                    span = Some(word.span());
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    prefix.push("*".to_owned());
                    span = Some(punct.span());
                }
                TokenTree::Group(group) => {
                    check_use(prefix, &group.stream().into_iter().collect::<Vec<_>>(), found);
                    span = None;
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
        if let Some(span) = span {
            judge_use(&prefix[..], renamed, span, found);
        }
        prefix.truncate(depth);
    }
}

fn judge_use(path: &[String], renamed: bool, span: Span, found: &mut Found) {
    let words: Vec<&str> = path.iter().map(String::as_str).collect();
    let last = words.last().copied().unwrap_or_default();
    if let Some(what) = refused_path(&words) {
        found.push((span.start().line, what));
    } else if words.first().is_some_and(|word| matches!(*word, "std" | "core" | "alloc")) {
        // What is hidden behind a glob or another name could not be seen where it is used.
        let hides =
            matches!(words[1..], ["*"] | ["time" | "collections", "*"] | ["collections", "hash_map" | "hash_set", "*"]);
        let hidden = renamed && (words.len() <= 2 || HASHED.iter().any(|(name, _)| *name == last));
        if hides || hidden {
            found.push((span.start().line, format!("`{}` would hide what is used: name it", words.join("::"))));
        }
    }
}

/// A path outside of a `use`; returns the place after it.
fn check_path(tokens: &[TokenTree], start: usize, found: &mut Found) -> usize {
    let mut words = Vec::new();
    let mut at = start;
    while let Some(TokenTree::Ident(word)) = tokens.get(at) {
        words.push(word.to_string());
        at += 1;
        if tokens.get(at).is_some_and(is_joint_colon) && tokens.get(at + 1).is_some_and(|t| is_punct(t, ':')) {
            at += 2;
        } else {
            break;
        }
    }
    // A field or a method of that name is somebody else's business.
    if start > 0 && is_punct(&tokens[start - 1], '.') {
        return at;
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let line = tokens[start].span().start().line;
    if let Some(what) = refused_path(&words) {
        found.push((line, what));
    } else if let Some((place, (name, arguments))) =
        words.iter().enumerate().find_map(|(place, word)| Some((place, HASHED.iter().find(|(name, _)| name == word)?)))
    {
        let has_hasher = match words.get(place + 1) {
            Some(function) => WITH_HASHER.contains(function),
            None => generic_arguments(&tokens[at..]).is_some_and(|count| count >= *arguments),
        };
        if !has_hasher {
            found.push((
                line,
                format!(
                    "`{name}` without a hasher is ordered at random: use BTreeMap, BTreeSet, Vec or a fixed hasher"
                ),
            ));
        }
    }
    at
}

fn refused_path(words: &[&str]) -> Option<String> {
    let module = match words {
        ["std" | "core", module, ..] => MODULES.contains(module),
        _ => false,
    };
    let name = words.iter().any(|word| NAMES.contains(word));
    (module || name).then(|| format!("`{}` does not exist for the core: take it as an argument", words.join("::")))
}

/// How many generic arguments stand in the angle brackets at the start, if there are any.
fn generic_arguments(tokens: &[TokenTree]) -> Option<usize> {
    if !is_punct(tokens.first()?, '<') {
        return None;
    }
    let (mut depth, mut count, mut in_argument) = (0_usize, 0, false);
    let mut before = ' ';
    for token in tokens {
        let punct = if let TokenTree::Punct(punct) = token { punct.as_char() } else { ' ' };
        match punct {
            '<' => depth += 1,
            '>' if before == '-' => {}
            '>' => depth -= 1,
            ',' if depth == 1 => in_argument = false,
            _ => {}
        }
        if depth == 0 {
            return Some(count);
        }
        if !in_argument && (depth > 1 || !matches!(punct, '<' | ',')) {
            in_argument = true;
            count += 1;
        }
        before = punct;
    }
    None
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

fn is_joint_colon(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':' && punct.spacing() == Spacing::Joint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        check_text(text).unwrap().into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn each_bad_text_is_refused_once() {
        for bad in [
            "use std::time::Instant;",
            "use std::time::{Duration, Instant};",
            "use std::{collections::BTreeMap, time::SystemTime};",
            "use ::std::fs::File;",
            "use std::net;",
            "use std::time::*;",
            "use std::*;",
            "use std as s;",
            "use std::time as t;",
            "use std::collections::HashMap as Map;",
            "fn f() { let now = std::time::Instant::now(); }",
            "fn f() { let now = time::Instant::now(); }",
            "fn f() { std::thread::sleep(d); }",
            "fn f() -> Option<String> { std::env::var(\"X\").ok() }",
            "fn f() { std::process::exit(1) }",
            "fn f(m: HashMap<u32, u32>) {}",
            "fn f(m: HashMap<u32, (u32, u32)>) {}",
            "fn f(m: HashMap<u32, Vec<u32>>) {}",
            "fn f(m: std::collections::HashSet<u32>) {}",
            "fn f() { let m = HashMap::new(); }",
            "fn f() { let m = HashMap::with_capacity(1); }",
            "fn f() { let m = x.collect::<HashSet<_>>(); }",
            "use std::hash::RandomState;",
            "use std::collections::hash_map::DefaultHasher;",
            "some_macro! { fn f() { std::fs::read(\"x\") } }",
        ] {
            assert_eq!(lines(bad), [1], "{bad}");
        }
    }

    #[test]
    fn good_texts_pass() {
        for good in [
            "use std::time::Duration;",
            "use std::collections::{BTreeMap, HashMap};",
            "use std::fmt::{self, Write as _};",
            "// std::time::Instant\nfn f() {}",
            "/// An `Instant` of std::fs.\nfn f() { g(\"std::env::var\"); }",
            "type Map<K, V> = HashMap<K, V, Fixed>;",
            "type Map = HashMap<u32, fn(u32) -> u32, Fixed>;",
            "fn f() { let m = HashMap::with_hasher(Fixed); let n: Map = HashMap::default(); }",
            "fn f() { self.Instant; }",
            "#[cfg(test)]\nmod tests { use std::time::Instant; }",
            "fn f() { my::env::var() }",
            "impl<T> X for Y<T> where T: Fn() -> u32 {}",
        ] {
            assert!(lines(good).is_empty(), "{good}: {:?}", check_text(good));
        }
    }

    #[test]
    fn the_line_is_told_and_code_after_a_test_module_counts() {
        assert_eq!(lines("fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }\nuse std::io;\n"), [4]);
    }

    #[test]
    fn what_is_no_rust_is_an_error() {
        assert!(check_text("fn f( {").is_err());
    }
}
