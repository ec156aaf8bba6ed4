#!/bin/bash
# Removes from an image's environment what no program of ours uses at run time, then compiles the rest: strip.sh FOLDER
# The test of each image's imports, and the runs through the containers, show that nothing is missing.
set -euo pipefail
shopt -s nullglob
python=$1/bin/python
cd "$1/lib/python3.11/site-packages"

# To compile against, and sources of what is compiled.
rm -rf tensorflow/include pyarrow/include numpy/_core/include
find . \( -name '*.h' -o -name '*.hpp' -o -name '*.pxd' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.a' \) -type f -delete
# The tests of the larger packages.
rm -rf {numpy,pandas,pyarrow,sklearn,scipy,matplotlib,apache_beam,airflow}/tests numpy/*/tests scipy/*/tests sklearn/*/tests \
  scipy/*/*/tests mpl_toolkits/*/tests fontTools/*/tests
# Protocols and stores that Arrow speaks and we do not: Flight, and S3, which fsspec does here.
rm -f pyarrow/*flight* pyarrow/*libarrow_s3* pyarrow/_s3fs*
# Three copies of one library, by its three names.
for library in pyarrow/libarrow_python*.so; do
  versioned=$(find pyarrow -regex "$library\.[0-9]+")
  [ -z "$versioned" ] || { rm -f "$library" "$versioned".*; ln -s "$(basename "$versioned")" "$library"; }
done
# botocore describes 400 services of AWS: those that storage and its credentials need stay.
if [ -d botocore/data ]; then
  find botocore/data -mindepth 1 -maxdepth 1 -type d \
    ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -rf {} +
fi
# Symbols for debuggers, a fifth of TensorFlow and a third of JAX. Libraries that wheels carry along are left as they are:
# those have been patched in a way that does not always survive it.
find . -name '*.so*' -type f -size +256k -not -path '*.libs/*' -exec strip --strip-unneeded {} +
"$python" -m compileall -q -j 0 "$PWD" >/dev/null || true
