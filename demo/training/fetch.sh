#!/usr/bin/env bash
# Download and unpack the parallel text: Debian packages (apt), Python wheels (pip), npm packages.
#
# usage: fetch.sh [WORK]        default: demo/build; about 4.5 GB of downloads
# needs: Debian 12 with its own package sources, python3-pip, npm, lz4, unzip, wget
#
# The AGPL projects named in sources.py are not on any list here, and build_corpus.py refuses them.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=$(realpath -m "${1:-$here/../build}")
system_sources=/etc/apt/sources.list.d/debian.sources
mkdir -p "$work"/apt/{lists/partial,cache/archives/partial,sources.list.d,debs,src} \
  "$work"/{x,src,py,pypi,npm}

# A private apt root: this machine's own Debian sources with source packages switched on, and the
# translated package descriptions kept, without touching the system's package lists.
sed 's/^Types: deb$/Types: deb deb-src/' "$system_sources" >"$work/apt/sources.list.d/debian.sources"
cat >"$work/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "-";
Dir::Etc::sourceparts "$work/apt/sources.list.d";
Dir::State::lists "$work/apt/lists";
Dir::Cache "$work/apt/cache";
APT::Sandbox::User "root";
CONF
export APT_CONFIG=$work/apt/apt.conf

# 1. Translated package descriptions (DDTP): the Translation-xx index files.
apt-get -o Acquire::Languages=en,de,fr,es,ru,zh_CN update

# 2. Packages with gettext catalogs, translated help and word lists; only those files are unpacked.
# Most packages lack most of the patterns, which makes tar complain and fail: hence "|| true".
mapfile -t debs <"$here/debs.txt"
(cd "$work/apt/debs" && apt-get download "${debs[@]}")
for deb in "$work"/apt/debs/*.deb; do
  package=$(basename "$deb" | cut -d_ -f1)
  mkdir -p "$work/x/$package"
  dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/x/$package" --wildcards \
    '*.mo' '*.po' '*/share/help/*.page' '*/share/help/*.docbook' '*/share/help/*.xml' \
    '*i18n/*.json' '*.lua' '*.html' '*/dictd/*' '*/trans/*' '*/doc/*/copyright' 2>/dev/null || true
done

# 3. Sources whose .po files no binary package carries (LibreOffice's interface and help among them).
wanted='translations.tar|installation-guide_.*xz$|/apt_.*xz$|/dpkg_.*xz$|aptitude.*orig.tar.xz$|calibre.*translations'
for package in libreoffice apt dpkg aptitude installation-guide calibre; do
  apt-get source --print-uris "$package" 2>/dev/null | { grep -oE "'http[^']+'" || true; } | tr -d "'"
done | grep -E "$wanted" | sort -u >"$work/apt/src/uris.txt"
(cd "$work/apt/src" && wget -nv -c -i uris.txt)
for archive in "$work"/apt/src/*.tar.xz; do
  name=$(basename "$archive" .tar.xz)
  case $name in
    libreoffice*)
      for language in de fr es ru zh-CN; do
        tar xJf "$archive" -C "$work/src" --wildcards "*/source/$language/*"
      done
      ;;
    *) tar xJf "$archive" -C "$work/src" --wildcards '*.po' --one-top-level="$name" ;;
  esac
done

# 4. Python projects with catalogs in their wheels.
(cd "$work/pypi" && pip download -q --no-deps homeassistant django wagtail plone-app-locales weblate \
  sphinx kolibri mailman postorius jupyterlab-language-pack-{de-de,fr-fr,es-es,ru-ru,zh-cn})
for wheel in "$work"/pypi/*.whl; do
  unzip -qo "$wheel" '*.mo' '*.po' '*/translations/*.json' '*LICENSE*' '*METADATA' \
    -d "$work/py/$(basename "$wheel" .whl)" || true
done

# 5. Unicode CLDR: names of emoji, languages and territories.
cd "$work/npm"
npm pack cldr-annotations-full cldr-localenames-full
for archive in *.tgz; do
  tar xzf "$archive" --one-top-level="${archive%.tgz}"
done
