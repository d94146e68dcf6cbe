#!/usr/bin/env bash
# Fetch what the demo page runs on: onnxruntime-web, by npm, at one version and of one content, into runtime/.
#
#     bash docs/demo/fetch.sh
set -euo pipefail
cd "$(dirname "$0")"
version=1.30.0
sha512=ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61
draft=$(mktemp -d)
trap 'rm -rf "$draft"' EXIT
npm pack "onnxruntime-web@$version" --silent --pack-destination "$draft" > /dev/null
echo "$sha512  $draft/onnxruntime-web-$version.tgz" | sha512sum --check --quiet
mkdir -p runtime
tar -xzf "$draft/onnxruntime-web-$version.tgz" -C runtime --strip-components 2 \
    package/dist/ort.wasm.min.mjs package/dist/ort-wasm-simd-threaded.mjs package/dist/ort-wasm-simd-threaded.wasm
echo "onnxruntime-web $version: $PWD/runtime"
