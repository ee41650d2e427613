# docker buildx bake, or its arguments read by `docker buildx bake --print`.
variable "BASE_IMAGE" {
  default = "vyvo/base:bookworm"
}

variable "IMAGE" {
  default = "vyvo/diffusion:dev"
}

variable "MODEL_ID" {
  default = "vyvo/diffusion"
}

variable "MODEL_VERSION" {
  default = "dev"
}

variable "BUILD_ID" {
  default = ""
}

variable "TEMPLATE_HASH" {
  default = ""
}

group "default" {
  targets = ["runner"]
}

target "runner" {
  context    = "."
  dockerfile = "Dockerfile"
  network    = "none"
  args = {
    BASE_IMAGE = BASE_IMAGE
  }
  tags = [IMAGE]
  labels = {
    "org.opencontainers.image.title"     = MODEL_ID
    "org.opencontainers.image.version"   = MODEL_VERSION
    "org.opencontainers.image.base.name" = BASE_IMAGE
    "org.opencontainers.image.revision"  = TEMPLATE_HASH
    "vyvo.template"                      = "diffusion"
    "vyvo.model"                         = MODEL_ID
    "vyvo.version"                       = MODEL_VERSION
    "vyvo.build"                         = BUILD_ID
  }
}
