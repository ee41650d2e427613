# docker buildx bake --file runner_images/bases/docker-bake.hcl cpu cuda
variable "CPU_FROM" {
  default = "debian:bookworm-slim"
}

variable "CUDA_VERSION" {
  default = "12.8.1"
}

variable "UBUNTU_VERSION" {
  default = "24.04"
}

# Further Debian packages, such as "ffmpeg libgl1".
variable "SYSTEM_PACKAGES" {
  default = ""
}

variable "REGISTRY" {
  default = "vyvo"
}

group "default" {
  targets = ["cpu"]
}

target "_base" {
  context    = "runner_images/bases"
  dockerfile = "Dockerfile"
}

target "cpu" {
  inherits = ["_base"]
  args     = { FROM_IMAGE = CPU_FROM, SYSTEM_PACKAGES = SYSTEM_PACKAGES }
  tags     = ["${REGISTRY}/base:bookworm"]
}

target "cuda" {
  inherits = ["_base"]
  args = {
    FROM_IMAGE      = "nvidia/cuda:${CUDA_VERSION}-cudnn-runtime-ubuntu${UBUNTU_VERSION}"
    SYSTEM_PACKAGES = SYSTEM_PACKAGES
  }
  tags = ["${REGISTRY}/base-cuda:${CUDA_VERSION}"]
}
