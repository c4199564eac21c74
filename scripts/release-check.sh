#!/usr/bin/env bash
# Checks that every crate can be published.
#
#   scripts/release-check.sh [--publish] [CHECK...]
#
# CHECK is any of these (default: all, in this order):
#
#   metadata   each crate has description, licence, repository, README, keywords and categories
#   package    `cargo package` of every crate: below 10 MB, with README and both licence texts, and no link between
#              its Markdown files that leads nowhere
#   outside    the packages, unpacked, build without the repository: a crate that depends on all of them, and
#              each package's own tests
#   deny       `cargo deny`: licences, sources, duplicate and banned crates, advisories (deny.toml)
#   semver     `cargo semver-checks` against the newest tag `v*`
#
# Prints a line for each check: ok, FAILED, or OPEN for what could not be checked, such as advisories without
# network. Exits with 1 if a check failed; with --publish also if one is open or the working tree has changes.
#
# Needs python3, `cargo install --locked cargo-deny cargo-semver-checks`, and crates.io. Environment:
# RELEASE_CHECK_TARGET (default target/release-check) is the folder of packages and builds;
# CARGO_TARGET_DIR, if set, is used for builds, which saves compiling dependencies again.
set -euo pipefail
exec </dev/null
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

publish=
[ "${1:-}" != --publish ] || { publish=yes; shift; }
checks=("$@")
[ ${#checks[@]} -gt 0 ] || checks=(metadata package outside deny semver)
work=${RELEASE_CHECK_TARGET:-$root/target/release-check}
mkdir -p "$work"
work=$(cd "$work" && pwd)
export CARGO_TERM_COLOR=never

results=()
failed=0 open=0
ok() { results+=("ok      $*"); }
bad() { results+=("FAILED  $*"); failed=1; }
left() { results+=("OPEN    $*"); open=1; }

cargo metadata --format-version 1 --no-deps --locked >"$work/metadata.json"
# "name version folder feature,feature" of each crate that may be published. The features are those of its documentation.
crates() {
    python3 - "$work/metadata.json" <<'PY'
import json, pathlib, sys
for package in json.load(open(sys.argv[1]))["packages"]:
    if package["publish"] != []:
        docs = ((package["metadata"] or {}).get("docs") or {}).get("rs") or {}
        features = ",".join(docs.get("features", [])) or "-"
        print(package["name"], package["version"], pathlib.Path(package["manifest_path"]).parent, features)
PY
}
crates >"$work/crates"

metadata() {
    local found
    found=$(python3 - "$work/metadata.json" <<'PY'
import json, sys
for package in json.load(open(sys.argv[1]))["packages"]:
    if package["publish"] == []:
        continue
    for field in ("description", "license", "repository", "readme", "keywords", "categories"):
        if not package[field]:
            print(f"{package['name']}: no {field}")
    if len(package["keywords"]) > 5 or any(len(word) > 20 for word in package["keywords"]):
        print(f"{package['name']}: crates.io takes 5 keywords of 20 characters")
    if len(package["categories"]) > 5:
        print(f"{package['name']}: crates.io takes 5 categories")
PY
    )
    if [ -n "$found" ]; then
        echo "$found"
        bad metadata
    else
        ok "metadata of $(wc -l <"$work/crates") crates"
    fi
    ! grep -q 'repository = ".*example\.' Cargo.toml || left "repository: the address in Cargo.toml ([workspace.package]) is a placeholder"
}

packaged=
package() {
    packaged=1
    local options=(--no-verify --locked) name version folder problems=0 size
    [ -n "$publish" ] || options+=(--allow-dirty)
    while read -r name _; do options+=(-p "$name"); done <"$work/crates"
    rm -rf "$work/target/package" "$work/packages"
    # Cargo takes crates that are not on crates.io yet from the packages that it has just made. `--offline`, as it
    # would update its index for each crate otherwise.
    cargo fetch --locked --quiet
    CARGO_TARGET_DIR=$work/target cargo package --quiet --offline "${options[@]}" || { bad "package: cargo package"; return; }
    mkdir -p "$work/packages"
    while read -r name version folder _; do
        local file=$work/target/package/$name-$version.crate unpacked=$work/packages/$name-$version
        tar -xzf "$file" -C "$work/packages"
        size=$(stat -c %s "$file")
        printf '%9d bytes  %s %s\n' "$size" "$name" "$version"
        [ "$size" -lt 10000000 ] || { echo "$name: larger than 10 MB"; problems=1; }
        [ -s "$unpacked/README.md" ] || { echo "$name: no README.md"; problems=1; }
        for text in LICENSE-MIT LICENSE-APACHE; do
            cmp -s "$text" "$unpacked/$text" || { echo "$name: $text is missing or differs"; problems=1; }
        done
    done <"$work/crates"
    dead_links || problems=1
    if [ "$problems" = 0 ]; then ok "$(wc -l <"$work/crates") packages below 10 MB, with README and licences"; else bad package; fi
}

# Fails if a relative link in a Markdown file of a package leads to no file of that package.
dead_links() {
    python3 - "$work/packages" <<'PY'
import pathlib, re, sys
packages, dead = pathlib.Path(sys.argv[1]), 0
for page in sorted(packages.glob("*/**/*.md")):
    for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text()):
        # `crate::` and the like are links of rustdoc.
        if "://" in link or "::" in link or link.startswith("mailto:"):
            continue
        if not (page.parent / link).exists():
            print(f"{page.relative_to(packages)}: link to {link}, which is not in the package")
            dead += 1
sys.exit(dead > 0)
PY
}

outside() {
    # Packages of an earlier call may be of other sources.
    [ -n "$packaged" ] || package
    local crate=$work/packages/outside name version features
    rm -rf "$crate"
    mkdir -p "$crate/src"
    {
        printf '[package]\nname = "outside"\nversion = "0.0.0"\nedition = "2024"\npublish = false\n\n[dependencies]\n'
        while read -r name version _ features; do
            [ "$name" != opensora-cli ] || continue # a program
            [ "$features" != - ] || features=
            [ -z "$features" ] || features="\"${features//,/\", \"}\""
            printf '%s = { version = "=%s", features = [%s] }\n' "$name" "$version" "$features"
        done <"$work/crates"
    } >"$crate/Cargo.toml"
    while read -r name _; do
        [ "$name" = opensora-cli ] || printf 'extern crate %s as _;\n' "${name//-/_}"
    done <"$work/crates" >"$crate/src/lib.rs"
    {
        printf '[workspace]\nresolver = "3"\nmembers = ["*"]\n\n[patch.crates-io]\n'
        while read -r name version _; do printf '%s = { path = "%s-%s" }\n' "$name" "$name" "$version"; done <"$work/crates"
        # With the same profiles, dependencies that the repository has built are not built again.
        awk '/^\[/ { on = /^\[profile\./ } on' Cargo.toml
    } >"$work/packages/Cargo.toml"
    # Versions of the repository; cargo drops what is not used.
    cp Cargo.lock "$work/packages/Cargo.lock"
    if (
        cd "$work/packages" || exit
        export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$work/target}
        # `set -e` does not hold in a condition. The tests are without the crate that enables the features of the
        # documentation: they are those of the repository, with the same features, and share its builds.
        cargo update --workspace --quiet &&
            cargo check --quiet -p outside &&
            cargo test --quiet --workspace --exclude outside
    ); then
        ok "packages build outside the repository and pass their own tests"
    else
        bad outside
    fi
}

deny() {
    cargo deny --version >/dev/null 2>&1 || { left "deny: cargo-deny is not installed"; return; }
    if cargo deny --log-level error --workspace check licenses sources bans; then
        ok "licences, sources and bans"
    else
        bad "licences, sources or bans"
    fi
    # Advisories come from a Git repository that not every machine reaches.
    if cargo deny --workspace check advisories >"$work/advisories" 2>&1; then
        ok advisories
    elif grep -qiE 'failed to (fetch|clone|open|load) advisory|unable to fetch|failed to acquire' "$work/advisories"; then
        tail -n 3 "$work/advisories"
        left "advisories: the database cannot be reached"
    else
        cat "$work/advisories"
        bad advisories
    fi
}

semver() {
    cargo semver-checks --version >/dev/null 2>&1 || { left "semver: cargo-semver-checks is not installed"; return; }
    local tag name features problems=0
    tag=${RELEASE_CHECK_BASELINE:-$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null || true)}
    [ -n "$tag" ] || { left "semver: nothing to compare with: no tag v* is set (CONTRIBUTING.md, releases), and RELEASE_CHECK_BASELINE names no commit"; return; }
    while read -r name _ _ features; do
        [ "$name" != opensora-cli ] || continue # no library
        [ -n "$(git ls-tree -d "$tag" "crates/${name#opensora-}" 2>/dev/null)" ] || { echo "$name: new since $tag"; continue; }
        [ "$features" != - ] || features=
        cargo semver-checks --quiet -p "$name" --baseline-rev "$tag" --only-explicit-features ${features:+--features "$features"} ||
            { echo "$name: differs from $tag"; problems=1; }
    done <"$work/crates"
    if [ "$problems" = 0 ]; then ok "no breaking change since $tag"; else bad "semver: breaking changes since $tag"; fi
}

for check in "${checks[@]}"; do
    case $check in
        metadata | package | outside | deny | semver) ;;
        *) echo "release-check.sh: no check '$check', known are metadata, package, outside, deny, semver" >&2; exit 2 ;;
    esac
    printf '\n=== %s\n' "$check"
    "$check"
done

printf '\n'
printf '%s\n' "${results[@]}"
[ "$failed" = 0 ] || exit 1
[ -z "$publish" ] || [ "$open" = 0 ]
