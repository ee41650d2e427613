# Run inside the image build: are the system packages there that the repository's cog.yaml names?
missing=""
while read -r name; do
  dpkg -s "$name" > /dev/null 2>&1 || missing="$missing $name"
done < /image/system-packages.txt
if [ -n "$missing" ]; then
  echo "error: the base image lacks the system packages$missing; name a base_image that has them" >&2
  exit 1
fi
