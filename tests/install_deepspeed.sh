#!/bin/sh
# install_deepspeed.sh PYTHON FOLDER: a virtual environment that sees the packages of another one, and DeepSpeed.
# DeepSpeed alone of the packages changes what accelerate and transformers do once it is there, so no other test sees it.
set -eu
python="$1" folder="$2"
"$python" -m venv "$folder"
packages="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo "import site; site.addsitedir('$packages')" \
    > "$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth"
# without dependencies, which would bring another torch
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    deepspeed hjson ninja py-cpuinfo einops msgpack nvidia-ml-py
touch "$folder/.installed"
