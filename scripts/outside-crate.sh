#!/usr/bin/env bash
# Builds a crate outside the workspace from README.md's instructions for users of the library.
#
#   scripts/outside-crate.sh check|build|run [cargo's options]
#
# Uses the `toml` block and the `rust` block of README.md, and the workspace's Cargo.lock, so that only this crate is
# compiled if the workspace has been built.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
verb=${1:?usage: outside-crate.sh check|build|run [cargo\'s options]}
shift

crate=$(mktemp -d)
trap 'rm -rf "$crate"' EXIT
mkdir "$crate/src"

block() { awk -v open="\`\`\`$1" '$0 == open { on = 1; next } $0 == "```" { on = 0 } on' "$root/README.md"; }
dependencies=$(block toml)
[[ $dependencies == *'[dependencies]'*opensora* ]] || { echo "README.md: no toml block with opensora as dependency" >&2; exit 1; }
{
    printf '[package]\nname = "outside"\nversion = "0.0.0"\nedition = "2024"\n\n[workspace]\n\n'
    printf '%s\n\n' "${dependencies//..\/opensora/$root}"
    # With the workspace's profile, so that its builds of dependencies are reused.
    awk '/^\[/ { on = /^\[profile\.dev/ } on' "$root/Cargo.toml"
} >"$crate/Cargo.toml"
block rust >"$crate/src/main.rs"
[ -s "$crate/src/main.rs" ] || { echo "README.md: no rust block" >&2; exit 1; }

# Cargo drops unused packages and keeps the versions of the others.
cp "$root/Cargo.lock" "$crate/Cargo.lock"
cd "$crate"
cargo update --workspace --offline --quiet
cargo "$verb" "$@"
if [ "$verb" = run ]; then
    [ -s circle.mp4 ] || { echo "the program wrote no circle.mp4" >&2; exit 1; }
fi
